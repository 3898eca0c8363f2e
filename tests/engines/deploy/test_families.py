"""Bundles of the families whose text, guidance or scheduler is not FLUX's or Stable Diffusion's: run.py draws the same
image as engines.load, which test_families.py of tests/export compares with torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

import engines
from artifact import manifest as manifests
from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.deploy.bundle import write_bundle
from engines.metrics import mean_squared_error, psnr_db
from engines.targets import find
from engines.trt.profiles import profile
from export.components import components
from export.graph_cache import prepared
from export.source import open_source
from tests.engines.deploy.jetson import Jetson
from tests.export import models
from tests.export.families import artifact_of, graph_store

Make = Callable[[Path], Jetson]
Family = Callable[[str], Path]
MODELS = {"sd3": models.stable_diffusion_3, "pixart": models.pixart, "sana": models.sana, "qwen": models.qwen_image}
PROMPT = " A large RED circle above a small green square "  # what is stripped and put in lower case, and where
NEGATIVE = "small blue cross"
DPM = {
    "pixart": {"beta_start": 0.0001, "beta_end": 0.02},
    "sana": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The float32 artifact of a tiny family; its graphs are their own form for TensorRT. Copy it before changing it."""
    store = graph_store(tmp_path_factory)

    @cache
    def get(name: str) -> Path:
        root = tmp_path_factory.mktemp("families") / name
        source = open_source(str(MODELS[name](root / "model")))
        graphs = [(part, prepared(source, part, "float32", store)) for part in components(source)]
        artifact = artifact_of(root / name, source, graphs)
        content = json.loads((artifact / manifests.NAME).read_text())
        for component in content["components"].values():
            component["tensorrt"] = component["models"]
        manifests.write(artifact, content)
        return artifact

    return get


@pytest.fixture
def changed(family: Family, tmp_path: Path) -> Callable[..., Path]:
    """A copy of an artifact with other entries in its manifest, a callable among them given the old entry."""

    def get(name: str, scheduler: Any = None, **entries: Any) -> Path:
        root = Path(shutil.copytree(family(name), tmp_path / "changed" / name))
        content = json.loads((root / manifests.NAME).read_text())
        content |= {k: v(content[k]) if callable(v) else v for k, v in entries.items()}
        if scheduler is not None:
            shutil.rmtree(root / "scheduler")
            scheduler.save_pretrained(root / "scheduler")
        names = [n for n in content["files"] if (root / n).is_file()]
        manifests.write(root, content | {"files": manifests.record(root, names)})
        return root

    return get


def placed(artifact: Path, tmp_path: Path, jetson: Make) -> Jetson:
    """The artifact's bundle on a device, its engines built."""
    device = jetson(write_bundle(Artifact.open(artifact), find("orin-nano"), out=tmp_path / "out"))
    built = device.build()
    assert built.returncode == 0, built.stderr
    return device


def drawn(device: Jetson, prompt: str, *arguments: object) -> np.ndarray:
    output = device.bundle.parent / "image.png"
    done = device.run("--prompt", prompt, "--seed", 5, "--output", output, *arguments)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(output))


def same(a: np.ndarray, b: Any) -> bool:
    """More than the 50 dB that a bundle has to reach: these graphs are in float32, and their pictures differ little."""
    found = float(psnr_db(mean_squared_error(a[None], np.asarray(b)[None]))[0])
    print(f"{found:.1f} dB")
    return found > 70


@pytest.mark.parametrize("name", MODELS)
def test_the_image_is_that_of_the_engines_here(name: str, family: Family, tmp_path: Path, jetson: Make) -> None:
    device = placed(family(name), tmp_path, jetson)
    found = drawn(device, PROMPT)
    with engines.load(family(name)) as pipe:
        assert same(found, pipe(PROMPT, seed=5))
        assert not same(found, pipe("a blue cross", seed=5))  # the text counts
        others = {"steps": 5, "guidance": 4.0, "negative_prompt": NEGATIVE}
        flags = ("--steps", 5, "--guidance", 4, "--negative-prompt", NEGATIVE)
        guided = drawn(device, PROMPT, *flags)
        assert same(guided, pipe(PROMPT, seed=5, **others))
        assert not same(guided, pipe(PROMPT, seed=5, **{**others, "guidance": 1.0}))  # and so does the guidance
        assert not same(guided, pipe(PROMPT, seed=5, **{**others, "negative_prompt": ""}))
        assert same(drawn(device, PROMPT, "--guidance", 1), pipe(PROMPT, seed=5, guidance=1.0))


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_that_is_too_long_is_cut_where_diffusers_cuts_it(
    name: str, family: Family, tmp_path: Path, jetson: Make
) -> None:
    device = placed(family(name), tmp_path, jetson)
    long = "a large red circle above a small green square below a blue cross on a large circle on a small square"
    with engines.load(family(name)) as pipe:
        assert same(drawn(device, long), pipe(long, seed=5))
        assert same(drawn(device, ""), pipe("", seed=5))


@pytest.mark.parametrize("name", DPM)
def test_dpm_solver_draws_the_image_of_the_engines_here(
    name: str, changed: Callable[..., Path], tmp_path: Path, jetson: Make
) -> None:
    artifact = changed(name, diffusers.DPMSolverMultistepScheduler(**DPM[name]))
    device = placed(artifact, tmp_path, jetson)
    with engines.load(artifact) as pipe:
        for steps in (4, 17):
            assert same(drawn(device, PROMPT, "--steps", steps), pipe(PROMPT, seed=5, steps=steps))


def test_sana_without_its_instruction(changed: Callable[..., Path], tmp_path: Path, jetson: Make) -> None:
    artifact = changed("sana", generation=lambda call: call | {"complex_human_instruction": None})
    device = placed(artifact, tmp_path, jetson)
    said = json.loads((device.bundle / "manifest.json").read_text())
    assert said["components"]["text_encoder"]["inputs"]["input_ids"] == [1, 12]
    with engines.load(artifact) as pipe:
        assert same(drawn(device, PROMPT), pipe(PROMPT, seed=5))


def test_sana_s_text_encoder_is_built_for_prompts_with_the_instruction_and_without(family: Family) -> None:
    artifact = Artifact.open(family("sana"))
    pipe = engines.as_diffusers(family("sana"))
    tokens = len(pipe.tokenizer.encode("\n".join(default_instruction()))) + 12 - 2
    found = profile(artifact, "text_encoder", artifact.model("text_encoder", "fp16"), [(32, 32)])["input_ids"]
    assert tokens > 100 and (found.min, found.opt, found.max) == ((1, 12), (1, tokens), (1, tokens))


def default_instruction() -> list[str]:
    import inspect

    return inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default


def test_sd3_without_t5_reads_zeros_in_its_place(changed: Callable[..., Path], tmp_path: Path, jetson: Make) -> None:
    """As diffusers does where text_encoder_3 is None: the way to fit SD3 into little memory."""
    artifact = changed(
        "sd3",
        components=lambda parts: {n: c for n, c in parts.items() if n != "text_encoder_3"},
        folders=lambda folders: {n: f for n, f in folders.items() if n != "tokenizer_3"},
    )
    device = placed(artifact, tmp_path, jetson)
    with engines.load(artifact) as pipe:
        assert same(drawn(device, PROMPT), pipe(PROMPT, seed=5))


@pytest.mark.parametrize("setting", ["clean_caption", "use_resolution_binning"])
def test_settings_that_a_device_cannot_carry_out_are_refused(changed: Callable[..., Path], setting: str) -> None:
    artifact = Artifact.open(changed("pixart", generation=lambda call: call | {setting: True}))
    with pytest.raises(UserError, match=f"cannot carry out {setting} .* generation.json as false"):
        write_bundle(artifact, find("orin-nano"))


def test_diffusers_own_settings_count_where_the_model_names_none(changed: Callable[..., Path]) -> None:
    """PixArt's pipeline cleans captions unless it is told not to."""
    rest = changed("pixart", generation=lambda call: {k: v for k, v in call.items() if k != "clean_caption"})
    with pytest.raises(UserError, match="cannot carry out clean_caption"):
        write_bundle(Artifact.open(rest), find("orin-nano"))


def test_a_tokenizer_of_another_length_than_clip_s_positions_is_refused(changed: Callable[..., Path]) -> None:
    def short(parts: dict[str, Any]) -> dict[str, Any]:
        parts["text_encoder"]["config"]["max_position_embeddings"] = 20
        return parts

    with pytest.raises(UserError, match="pads prompts to 16 tokens and its text encoder has positions for 20"):
        write_bundle(Artifact.open(changed("sd3", components=short)), find("orin-nano"))
