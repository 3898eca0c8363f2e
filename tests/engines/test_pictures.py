"""Pipelines that draw from a picture beside the prompt, on engines: what they take, and that every command gives it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import engines
from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.pictures import same_pictures
from artifact.sampling import sample
from engines.cost.ceilings import Ceilings
from engines.cost.host import Host
from engines.cost.prediction import calls_per_image
from engines.deploy.description import describe
from engines.evaluate import evaluate
from engines.measure import measure
from engines.modes import estimated_bytes
from engines.references import References, Timed
from engines.report import write_report
from engines.run import app
from engines.validation import fidelity
from engines.validation.comparison import choose_comparison
from engines.validation.fidelity import drawn
from engines.validation.process import Run, record
from tests.engines.tiny import PROMPTS, SIDE, Tiny

TOLERANCE = 2e-4


@pytest.fixture(params=["flux_fill", "flux_control"])
def tool(request: pytest.FixtureRequest) -> Tiny:
    return request.getfixturevalue(request.param)


def image_of(tiny: Tiny, number: int = 0) -> Image.Image:
    assert tiny.pictures is not None
    return Image.fromarray(tiny.pictures.images[number])


def mask_of(tiny: Tiny, number: int = 0) -> Image.Image | None:
    assert tiny.pictures is not None
    return None if tiny.pictures.masks is None else Image.fromarray(tiny.pictures.masks[number])


def test_a_batch_on_engines_equals_torch_step_by_step(tool: Tiny) -> None:
    noise = tool.noise(4, 5)
    assert tool.pictures is not None
    pictures = tool.pictures[:2]
    expected = sample(tool.pipe, PROMPTS[:2], noise, tool.generation, pictures=pictures)
    pipe = engines.as_diffusers(tool.root)
    assert type(pipe) is type(tool.pipe)
    found = sample(pipe, PROMPTS[:2], noise, tool.generation, pictures=pictures)
    assert expected.latents.shape == (2, 3, 16, 16) and expected.latents.std() > 0.1
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=TOLERANCE)
    assert np.abs(found.images.astype(int) - expected.images).max() <= 1
    alone = sample(pipe, PROMPTS[1:2], noise[1:], tool.generation, pictures=pictures[1:])
    np.testing.assert_allclose(alone.latents[0], found.latents[1], rtol=0, atol=TOLERANCE)


def test_a_call_draws_from_its_image(tool: Tiny) -> None:
    assert tool.pictures is not None
    expected = sample(tool.pipe, PROMPTS[:1], tool.noise(7), tool.generation, pictures=tool.pictures[:1]).images[0]
    with engines.load(tool.root) as pipe:
        found = np.asarray(pipe(PROMPTS[0], image=image_of(tool), mask=mask_of(tool), seed=7), int)
        other = np.asarray(pipe(PROMPTS[0], image=image_of(tool, 1), mask=mask_of(tool), seed=7), int)
        batch = pipe(PROMPTS[:2], image=image_of(tool), mask=mask_of(tool), seed=7)
    assert np.abs(found - expected).max() <= 1 < np.abs(found - other).max()
    assert np.abs(np.asarray(batch[0], int) - found).max() <= 1 and len(batch) == 2


def test_transparent_pixels_are_a_mask(flux_fill: Tiny) -> None:
    seen = image_of(flux_fill).convert("RGBA")
    mask = mask_of(flux_fill)
    assert mask is not None
    seen.putalpha(Image.eval(mask, lambda white: 255 - white))
    with engines.load(flux_fill.root) as pipe:
        expected = pipe(PROMPTS[0], image=image_of(flux_fill), mask=mask)
        found = pipe(PROMPTS[0], image=seen)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("flux_fill", {"image": None}, "No image was given, and a FluxFillPipeline draws from a picture and its mask"),
        ("flux_fill", {"mask": None}, "The image has no mask"),
        ("flux_fill", {"mask": Image.new("L", (8, 9))}, "The mask is 8 x 9 pixels and its picture 32 x 32"),
        ("flux_fill", {"strength": 0.6}, "strength is 0.6, but a FluxFillPipeline always starts from noise alone"),
        ("flux_fill", {"negative_prompt": "grey"}, "FluxFillPipeline takes no negative prompt"),
        ("flux_control", {"image": None}, "No image was given, and a FluxControlPipeline draws from a picture beside"),
        ("flux_control", {"mask": Image.new("L", (32, 32))}, "a FluxControlPipeline takes none"),
        ("flux_control", {"image": Image.new("I;16", (32, 32))}, "The image has more than 8 bits a channel"),
    ],
)
def test_what_the_pipeline_does_not_take_is_refused(
    request: pytest.FixtureRequest, name: str, call: dict[str, Any], words: str
) -> None:
    tiny: Tiny = request.getfixturevalue(name)
    right = {"image": image_of(tiny), "mask": mask_of(tiny)}
    with engines.load(tiny.root) as pipe, pytest.raises(UserError, match=words):
        pipe(PROMPTS[0], **(right | call))


def test_the_command_draws_from_files(flux_fill: Tiny, flux_control: Tiny, tmp_path: Path) -> None:
    def invoke(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--output", tmp_path / "image.png")])
        return result.exit_code, result.stderr

    mask = mask_of(flux_fill)
    assert mask is not None
    image_of(flux_fill).save(tmp_path / "picture.png")
    mask.save(tmp_path / "mask.png")
    for tiny, given in ((flux_fill, ("--mask", tmp_path / "mask.png")), (flux_control, ())):
        code, error = invoke(
            tiny.root, "--prompt", PROMPTS[0], "--seed", 3, "--image", tmp_path / "picture.png", *given
        )
        assert code == 0, error
        rule = Artifact.open(tiny.root).pictures
        assert rule is not None
        pictures = same_pictures(rule, image_of(flux_fill), mask, 1, SIDE, SIDE)
        expected = sample(tiny.pipe, PROMPTS[:1], tiny.noise(3), tiny.generation, pictures=pictures).images[0]
        assert np.abs(np.asarray(Image.open(tmp_path / "image.png"), int) - expected).max() <= 1
        (tmp_path / "image.png").unlink()
    for arguments, words in (
        ((flux_fill.root,), "error: No image was given, and a FluxFillPipeline"),
        ((flux_fill.root, "--image", tmp_path / "picture.png"), "error: The image has no mask"),
        ((flux_control.root, "--image", tmp_path / "picture.png", "--strength", 0.5), "error: strength is 0.5"),
    ):
        code, error = invoke(*arguments, "--prompt", PROMPTS[0])
        assert code == 2 and error.startswith(words) and error.count("\n") == 1
    assert not (tmp_path / "image.png").exists()


def test_a_task_that_the_family_lacks_is_refused(flux_fill: Tiny) -> None:
    with pytest.raises(UserError, match="this family has no image2image"):
        engines.as_diffusers(flux_fill.root, task="image2image")


def test_references_are_drawn_again_from_the_pictures_stored_with_them(
    tool: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact.open(tool.root)
    references = References.read(artifact)
    assert references.pictures is not None and tool.pictures is not None
    assert references.pictures.digest == tool.pictures.digest
    comparison = choose_comparison(artifact, "int4-rtn")
    with engines.load(tool.root, "fp16") as pipe:
        found = drawn(pipe, comparison, "")
    np.testing.assert_allclose(found.latents, references.latents.astype(np.float32), rtol=0, atol=0.01)
    monkeypatch.setattr(fidelity, "MOST_PER_CALL", 2)
    other = replace(comparison, pictures=references.pictures[::-1])
    assert other.digest != comparison.digest
    with engines.load(tool.root, "fp16") as pipe:
        parts, reversed_ones = drawn(pipe, comparison, ""), drawn(pipe, other, "")
    np.testing.assert_allclose(parts.latents, found.latents, rtol=0, atol=1e-3)
    assert np.abs(reversed_ones.latents - found.latents).max() > 0.05


def test_own_prompts_need_own_pictures(flux_fill: Tiny, flux: Tiny, tmp_path: Path) -> None:
    artifact, words = Artifact.open(flux_fill.root), tmp_path / "ours.txt"
    words.write_text("a red circle\na cross\n", encoding="utf-8")
    given = flux_fill.root / "references/pictures"
    found = choose_comparison(artifact, "int4-rtn", prompts=words, pictures=given)
    assert found.pictures is not None and flux_fill.pictures is not None
    assert found.pictures.digest == flux_fill.pictures[:2].digest
    with pytest.raises(UserError, match="FluxFillPipeline draws from a picture and its mask .* with --pictures"):
        choose_comparison(artifact, "int4-rtn", prompts=words)
    with pytest.raises(UserError, match="was given without --prompts"):
        choose_comparison(artifact, "int4-rtn", pictures=given)
    with pytest.raises(UserError, match="a FluxPipeline takes no picture"):
        choose_comparison(Artifact.open(flux.root), "int4-rtn", prompts=words, pictures=given)


def test_what_is_timed_has_its_picture_with_references_and_without(tool: Tiny) -> None:
    artifact = Artifact.open(tool.root)
    timed, bare = Timed.of(artifact), Timed.of(Artifact(tool.root, artifact.manifest | {"references": {}}))
    assert tool.pictures is not None and timed.pictures is not None and bare.pictures is not None
    assert timed.prompt == PROMPTS[0] and timed.pictures.digest == tool.pictures[:1].digest
    assert bare.pictures.images.shape == (1, SIDE, SIDE, 3)
    with engines.load(tool.root) as pipe:
        assert pipe(bare.prompt, **bare.given).size == (SIDE, SIDE)


def test_times_and_memory_count_the_image_encoder(tool: Tiny) -> None:
    found = measure(tool.root, "fp16", repeats=2, threads=1)
    assert found["components"]["vae_encoder"]["calls"] == 1 and found["components"]["transformer"]["calls"] == 3
    assert "load vae_encoder" in [what for _, what in found["over_time"]["marks"]]
    raw = record(Run(str(tool.root), "fp16", "onnxruntime", PROMPTS[0], 2, 1.0, threads=1))
    assert len(raw["calls_ms"]["vae_encoder"]) == len(raw["images_ms"])
    artifact = Artifact.open(tool.root)
    plain = Artifact(tool.root, artifact.manifest | {"pictures": None})
    sizes = [estimated_bytes(a, "fp16", "onnxruntime", "resident") for a in (artifact, plain)]
    assert sizes[0] > sizes[1]


def test_predictions_count_the_image_encoder_and_the_work_between(tool: Tiny) -> None:
    artifact = Artifact.open(tool.root)
    calls = calls_per_image(artifact, 2)
    assert calls == {"text_encoder": 1, "text_encoder_2": 1, "transformer": 2, "vae_decoder": 1, "vae_encoder": 1}
    work, known = Host(artifact, "fp16", (2, SIDE, SIDE), calls, 1), Ceilings(1)
    work.measure(known, runs=1)
    assert all(s > 0 for s in known.seconds[work.key].values())


def test_the_report_shows_what_an_image_was_drawn_from(flux_fill: Tiny, tmp_path: Path) -> None:
    root = Path(shutil.copytree(flux_fill.root, tmp_path / "fill"))
    artifact = Artifact.open(root)
    results = evaluate(artifact, batch=2, repeats=1, threads=1)
    assert results["presets"][0]["fidelity"]["psnr_db"]["min"] > 45  # fp16 of the same graphs, and the same pictures
    _, page = write_report(artifact, results)
    text = page.read_text(encoding="utf-8")
    assert text.count('alt="drawn from: ') == text.count('alt="mask: ') == len(PROMPTS)


def test_a_bundle_says_that_it_cannot_draw_from_pictures(tool: Tiny) -> None:
    with pytest.raises(UserError, match=f"A bundle cannot run a {type(tool.pipe).__name__} yet"):
        describe(Artifact.open(tool.root), "fp16")
