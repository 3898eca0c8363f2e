"""diffusers' own pipelines on engines draw what they draw on torch modules."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import engines
from artifact.errors import UserError
from artifact.sampling import sample
from engines.assembly import TASKS
from tests.engines.tiny import PROMPTS, SIDE, Tiny

FAMILIES = ("flux", "stable_diffusion", "stable_diffusion_xl")
TOLERANCE = 2e-4  # of latents whose values are about 1 to 10, after three steps in float32


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Tiny:
    return request.getfixturevalue(request.param)


def picture() -> Image.Image:
    """A start image with structure in it."""
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    return Image.fromarray(np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)),
                                     np.full((SIDE, SIDE), 90, np.uint8)], axis=2))  # fmt: skip


def test_a_batch_on_engines_equals_torch_step_by_step(family: Tiny) -> None:
    noise = family.noise(4, 5)
    expected = sample(family.pipe, PROMPTS[:2], noise, family.generation)
    found = sample(engines.as_diffusers(family.root), PROMPTS[:2], noise, family.generation)
    assert expected.latents.std() > 0.1
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=TOLERANCE)
    assert np.abs(found.images.astype(int) - expected.images).max() <= 1


def hole() -> Image.Image:
    """A mask: the right half is to be drawn anew."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, SIDE // 2 :] = 255
    return Image.fromarray(mask)


def on_torch(family: Tiny, task: str, **given: Any) -> np.ndarray:
    """What the family's torch pipeline for the task makes of the first prompt, float32 [H, W, 3] in 0..255."""
    import diffusers

    name = type(family.pipe).__name__.replace("Pipeline", TASKS[task] + "Pipeline")
    parts = {k: v for k, v in family.pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    old = name.startswith(("StableDiffusionImg", "StableDiffusionInp"))
    more = {"feature_extractor": None, "requires_safety_checker": False} if old else {}
    torch_pipe = getattr(diffusers, name)(**parts, **more)
    torch_pipe.set_progress_bar_config(disable=True)
    accepted = inspect.signature(torch_pipe.__call__).parameters
    call = {k: v for k, v in family.generation.items() if k in accepted}
    with torch.no_grad():
        drawn = torch_pipe(PROMPTS[0], generator=torch.Generator().manual_seed(9), output_type="np", **given, **call)
    return drawn.images[0] * 255


def test_image_to_image_on_engines_equals_torch(family: Tiny) -> None:
    expected = on_torch(family, "image2image", image=picture(), strength=0.7)
    with engines.load(family.root) as pipe:
        found = pipe(PROMPTS[0], image=picture(), strength=0.7, seed=9)
        other = pipe(PROMPTS[0], image=picture(), strength=0.7, seed=10)
    assert np.abs(np.asarray(found, float) - expected).max() <= 1
    assert np.abs(np.asarray(found, int) - np.asarray(other, int)).max() > 2


def test_inpainting_on_engines_equals_torch(family: Tiny) -> None:
    expected = on_torch(family, "inpainting", image=picture(), mask_image=hole(), strength=0.7)
    with engines.load(family.root) as pipe:
        found = np.asarray(pipe(PROMPTS[0], image=picture(), mask=hole(), strength=0.7, seed=9), float)
        unmasked = np.asarray(pipe(PROMPTS[0], image=picture(), strength=0.7, seed=9), float)
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - unmasked).max() > 2


@pytest.mark.parametrize(("task", "given"), [("image2image", ()), ("inpainting", ("mask_image",))])
def test_diffusers_own_class_for_a_task_runs_on_engines(family: Tiny, task: str, given: tuple[str, ...]) -> None:
    more = {"mask_image": hole()} if given else {}
    expected = on_torch(family, task, image=picture(), strength=0.7, **more)
    pipe = engines.as_diffusers(family.root, task=task)
    assert type(pipe).__name__ == type(family.pipe).__name__.replace("Pipeline", TASKS[task] + "Pipeline")
    pipe.set_progress_bar_config(disable=True)
    accepted = inspect.signature(pipe.__call__).parameters
    call = {k: v for k, v in family.generation.items() if k in accepted}
    found = pipe(PROMPTS[0], image=picture(), strength=0.7, generator=torch.Generator().manual_seed(9),
                 output_type="np", **more, **call).images[0]  # fmt: skip
    assert np.abs(found * 255 - expected).max() <= 1


def test_a_mask_without_an_image_and_an_unknown_task_are_refused(flux: Tiny) -> None:
    with engines.load(flux.root) as pipe:
        with pytest.raises(UserError, match="A mask was given without an image"):
            pipe(PROMPTS[0], mask=hole())
        with pytest.raises(UserError, match="no task 'inpaint': did you mean 'inpainting'"):
            pipe.diffusers("inpaint")


def test_one_prompt_gives_the_image_that_it_has_in_a_batch(flux: Tiny) -> None:
    with engines.load(flux.root) as pipe:
        batch = pipe(PROMPTS, seed=20)
        alone = pipe(PROMPTS[1], seed=21)
    assert isinstance(batch, list) and len(batch) == len(PROMPTS)
    assert alone.size == (SIDE, SIDE)
    assert np.abs(np.asarray(alone, int) - np.asarray(batch[1], int)).max() <= 1


def test_a_call_draws_from_the_seeds_noise(flux: Tiny) -> None:
    expected = sample(flux.pipe, PROMPTS[:1], flux.noise(7), {**flux.generation, "num_inference_steps": 2}).images[0]
    with engines.load(flux.root) as pipe:
        seen: list[tuple[int, int, str]] = []
        found = pipe(PROMPTS[0], seed=7, steps=2, progress=lambda *step: seen.append(step))
    assert np.abs(np.asarray(found, int) - expected).max() <= 1
    assert [s[:2] for s in seen] == [(1, 2), (2, 2)]


def test_the_preset_chosen_is_the_one_that_runs(flux: Tiny) -> None:
    drawn = {}
    for preset in (None, "fp16", "int4-rtn"):
        with engines.load(flux.root, preset) as pipe:
            drawn[preset] = np.asarray(pipe(PROMPTS[0], seed=1), int)
    assert np.array_equal(drawn[None], drawn["fp16"])
    assert np.abs(drawn["fp16"] - drawn["int4-rtn"]).max() > 2


def test_guidance_reaches_the_family_keyword(flux: Tiny, stable_diffusion: Tiny) -> None:
    for tiny, keyword in ((flux, "true_cfg_scale"), (stable_diffusion, "guidance_scale")):
        expected = sample(tiny.pipe, PROMPTS[:1], tiny.noise(3), {**tiny.generation, keyword: 6.0}).images[0]
        with engines.load(tiny.root) as pipe:
            found = np.asarray(pipe(PROMPTS[0], seed=3, guidance=6.0), int)
        assert np.abs(found - expected).max() <= 1


def test_a_start_image_of_another_size_is_cropped_to_fit(flux: Tiny) -> None:
    wide = Image.new("RGB", (4 * SIDE, SIDE), "red")
    wide.paste(picture(), (3 * SIDE // 2, 0))
    with engines.load(flux.root) as pipe:
        found = pipe(PROMPTS[0], image=wide, strength=0.5)
        expected = pipe(PROMPTS[0], image=picture(), strength=0.5)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"height": 36}, "multiple of 8: give 32 or 40"),
        ({"width": 0}, "multiple of 8"),
        ({"seed": -3}, "seed is -3"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"image": picture(), "strength": 0.0}, "strength is 0.0"),
        ({"image": picture(), "strength": 1.5}, "strength is 1.5"),
        ({"image": picture(), "strength": 0.1}, "leaves no step"),
    ],
)
def test_a_value_the_pipeline_cannot_take_is_named(flux: Tiny, call: dict[str, object], words: str) -> None:
    with engines.load(flux.root) as pipe, pytest.raises(UserError, match=words):
        pipe(PROMPTS[0], **call)


def test_a_unet_needs_sizes_that_its_levels_can_halve(stable_diffusion: Tiny) -> None:
    with engines.load(stable_diffusion.root) as pipe, pytest.raises(UserError, match="multiple of 8: give 32 or 40"):
        pipe(PROMPTS[0], height=36)


def test_clip_skip_without_that_layer_is_refused(stable_diffusion: Tiny) -> None:
    pipe = engines.as_diffusers(stable_diffusion.root)
    with pytest.raises(UserError, match="gives hidden states -2, not -4"):
        pipe(PROMPTS[0], clip_skip=3)


def test_a_tensor_without_an_input_in_the_graph_is_refused(stable_diffusion: Tiny) -> None:
    unet = engines.as_diffusers(stable_diffusion.root).unet
    with pytest.raises(UserError, match="was given .*mid_block_additional_residual"):
        unet(torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 8, 32), mid_block_additional_residual=torch.zeros(1, 16, 4, 4))


def test_an_unknown_preset_offers_the_nearest(flux: Tiny) -> None:
    with pytest.raises(UserError, match="holds fp16, int4-rtn: did you mean 'int4-rtn'"):
        engines.load(flux.root, "int4-rtm")


def test_reading_an_artifact_imports_no_torch() -> None:
    code = "import sys, engines, engines.targets, engines.session; sys.exit('torch' in sys.modules)"
    root = Path(engines.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
