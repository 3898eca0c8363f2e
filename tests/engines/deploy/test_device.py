"""run.py on a device of stand-ins: the image is that of engines.load, faults are one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines
from engines.metrics import mean_squared_error, psnr_db
from tests.engines import tiny
from tests.engines.deploy.jetson import Jetson
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


def refused(device: Jetson, *arguments: object, **variables: str) -> str:
    """The one sentence with which run.py ends, nothing written."""
    output = device.bundle.parent / "refused" / "image.png"
    done = device.run("--prompt", PROMPTS[0], "--output", output, *arguments, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not output.exists()
    return done.stderr


@pytest.fixture
def device(sd_bundle: Path, jetson: Make) -> Jetson:
    made = jetson(sd_bundle)
    assert made.build().returncode == 0
    return made


PLAN = "engines/unet.fp16.sm87.trt10.3.plan"


def test_validation_compares_with_the_references_and_a_broken_budget_is_1(device: Jetson) -> None:
    done = device.run("--validate", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prompts"] == 3 and found["psnr_db"]["min"] > 50 and found["latent_cosine"]["min"] > 0.9999
    assert set(found["p50_ms"]) == {"text_encoder", "unet", "vae_decoder"} and found["memory_bytes"]["gpu"] > 0
    shown = device.run("--validate", "--min-psnr", "40")
    assert shown.returncode == 0 and "latent cosine" in shown.stdout and "unet" in shown.stdout
    broken = device.run("--validate", "--min-psnr", "1000", "--quiet")
    assert broken.returncode == 1 and "is below --min-psnr 1000" in broken.stderr and broken.stdout == ""


def test_references_of_another_seed_are_told_apart(device: Jetson) -> None:
    """The validation can fail: with the seeds moved by one, images and latents differ."""
    path = device.bundle / "references/prompts.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "seeds": [s + 1 for s in said["seeds"]]}))
    done = device.run("--validate", "--json", "--no-verify")
    assert json.loads(done.stdout)["psnr_db"]["mean"] < 40 and json.loads(done.stdout)["latent_cosine"]["min"] < 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", 51), "the bundle has tables for 1 to 50"),
        (("--steps", 0), "steps is 0"),
        (("--seed", -1), "--seed is -1"),
        (("--output", "x.tree"), "no image suffix"),
        (("--output", "/proc/none/x.png"), "Cannot write"),
    ],
)
def test_a_bad_option_is_refused(device: Jetson, arguments: tuple[object, ...], words: str) -> None:
    assert words in refused(device, *arguments)


def test_a_plan_that_does_not_belong_here_is_refused(device: Jetson) -> None:
    plan, record = device.bundle / PLAN, device.bundle / f"{PLAN}.json"
    said = json.loads(record.read_text())
    for change, words in (
        ({"sm": "110"}, "was built for sm_110 and this GPU is sm_87"),
        ({"tensorrt": "10.16.0"}, "was built by TensorRT 10.16.0 and this is TensorRT 10.3.0"),
        ({"onnx_sha256": "0" * 64}, "was built from another graph"),
        ({"plugin_sha256": "0" * 64}, "was built with another plugin"),
        ({"plan_sha256": "0" * 64}, "is truncated or damaged"),
    ):
        record.write_text(json.dumps({**said, **change}))
        assert words in refused(device)
    record.write_text("{")
    assert f"{record} is damaged" in refused(device)
    record.write_text(json.dumps(said))
    assert "this is TensorRT 10.16.1: run build.sh again" in refused(device, STAND_IN_TENSORRT="10.16.1")
    plan.write_bytes(plan.read_bytes()[:-3])
    assert "is truncated or damaged" in refused(device)
    plan.unlink()
    assert "There is no engine of unet" in refused(device)


@pytest.mark.parametrize("name", ["steps.json", "lib/engines/metrics.py", "tokenizer/text_encoder.json"])
def test_a_damaged_file_of_the_bundle_is_named(device: Jetson, name: str) -> None:
    path = device.bundle / name
    path.write_bytes(path.read_bytes() + b" ")
    assert f"{path} is damaged" in refused(device)
    if not name.startswith("lib/"):
        path.unlink()
        assert f"{path} is missing" in refused(device)


def test_a_damaged_manifest_is_named(device: Jetson) -> None:
    path = device.bundle / "manifest.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    assert f"{path} is missing or damaged" in refused(device)
    path.write_text(whole.replace("bundle 2", "bundle 1"))
    assert "has format 'bundle 1'" in refused(device)


def test_a_nan_is_named_with_its_component_and_call(device: Jetson) -> None:
    said = refused(device, STAND_IN_NAN="unet")
    assert "of 'unet' holds NaN or infinity in call 1" in said


def test_a_device_without_what_run_py_needs_says_what_is_missing(device: Jetson) -> None:
    modules = Path(device.environment["PYTHONPATH"])
    (modules / "tensorrt.py").rename(modules / "away.py")
    assert "tensorrt cannot be imported" in refused(device) and "python3-libnvinfer" in refused(device)
    (modules / "away.py").rename(modules / "tensorrt.py")
    assert "There is no NVIDIA driver here" in refused(device, SVDQ_LIBCUDA="/nowhere/libcuda.so.1")


def test_a_shape_outside_the_profile_is_refused(device: Jetson) -> None:
    path = device.bundle / "manifest.json"
    said = json.loads(path.read_text())
    said["latents"]["channels"] = 5
    path.write_text(json.dumps(said))
    assert "was not built for sample of shape [2, 5, 8, 8]" in refused(device, "--no-verify")


def test_the_bundle_stays_as_it_was_copied(device: Jetson) -> None:
    before = {p: p.stat().st_mtime_ns for p in device.bundle.rglob("*")}
    drawn(device)
    assert {p: p.stat().st_mtime_ns for p in device.bundle.rglob("*")} == before
