"""Bundles of real builds on a device of stand-ins: the plugin form that TensorRT would parse draws the image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines
from artifact.manifest import Artifact
from engines.deploy.bundle import write_bundle
from engines.metrics import mean_squared_error, psnr_db
from engines.targets import find
from tests.engines.deploy.jetson import Jetson, compile_libcuda, place

PROMPT = "a large red circle above a small blue square on white"


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(psnr_db(mean_squared_error(a[None], b[None]))[0])


def deployed(root: Path, preset: str, tmp_path: Path) -> Jetson:
    """The preset's bundle on a Jetson whose engines are built; its plugin's library is a stand-in, too."""
    bundle = write_bundle(Artifact.open(root), find("orin-nano"), preset, out=tmp_path / "out")
    device = place(bundle, tmp_path, compile_libcuda(tmp_path))
    (device.bundle / "plugin" / "libsvdq_plugin.so").write_bytes(b"stand-in")
    done = device.build()
    assert done.returncode == 0, done.stderr
    return device


@pytest.mark.parametrize("preset", ["fp16", "svdq-int4"])
@pytest.mark.parametrize("model", ["built", "built_unet"])
def test_the_device_draws_the_image_of_the_engines_here(
    model: str, preset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root: Path = request.getfixturevalue(model)
    device = deployed(root, preset, tmp_path)
    done = device.run("--prompt", PROMPT, "--seed", 3, "--output", tmp_path / "image.png")
    assert done.returncode == 0, done.stderr
    with engines.load(root, preset) as pipe:
        here = np.asarray(pipe(PROMPT, seed=3))
    assert psnr(np.asarray(Image.open(tmp_path / "image.png")), here) > 50


def test_the_device_validates_against_the_16_bit_references(built: Path, tmp_path: Path) -> None:
    device = deployed(built, "svdq-int4", tmp_path)
    done = device.run("--validate", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prompts"] == 2 and found["psnr_db"]["mean"] > 25 and found["latent_cosine"]["last"] > 0.99
