"""run.py on a device of stand-ins: the image is that of engines.load, faults are one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines
from engines.metrics import mean_squared_error, psnr_db
from tests.engines import tiny
from tests.engines.deploy.conftest import Jetson
from tests.engines.tiny import PROMPTS

Make = Callable[[Path], Jetson]


def drawn(device: Jetson, *arguments: object) -> np.ndarray:
    output = device.bundle.parent / "image.png"
    done = device.run("--prompt", PROMPTS[1], "--seed", 5, "--output", output, *arguments)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(output))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(psnr_db(mean_squared_error(a[None], b[None]))[0])


@pytest.mark.parametrize("family", ["flux", "sd", "sdxl"])
def test_the_image_is_that_of_the_engines_here(family: str, request: pytest.FixtureRequest, jetson: Make) -> None:
    names = {"flux": "flux", "sd": "stable_diffusion", "sdxl": "stable_diffusion_xl"}
    artifact: tiny.Tiny = request.getfixturevalue(names[family])
    device = jetson(request.getfixturevalue(f"{family}_bundle"))
    built = device.build()
    assert built.returncode == 0, built.stderr
    with engines.load(artifact.root, "fp16") as pipe:
        assert psnr(drawn(device), np.asarray(pipe(PROMPTS[1], seed=5))) > 50
        others = {"steps": 5, "guidance": 4.0, "negative_prompt": "a large white cross"}
        flags = ("--steps", 5, "--guidance", 4, "--negative-prompt", "a large white cross")
        assert psnr(drawn(device, *flags), np.asarray(pipe(PROMPTS[1], seed=5, **others))) > 50
        assert psnr(drawn(device, "--guidance", 1), np.asarray(pipe(PROMPTS[1], seed=5, guidance=1.0))) > 50
