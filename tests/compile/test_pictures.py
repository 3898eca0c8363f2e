"""A model that draws from pictures, from the command to the image: FLUX.1 Fill calibrated and measured, Control not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines
from artifact.manifest import Artifact
from artifact.pictures import PictureRule
from tests.compile.commands import ROOT, SMALL, build, refused
from tests.compile.conftest import once
from tests.export import models

FEW = ("--rank", "16", "--text-encoder-bits", "16")


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.flux_fill(tmp_path_factory.mktemp("models") / "tiny-fill")


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.flux_control(tmp_path_factory.mktemp("models") / "tiny-control")


@pytest.fixture(scope="module")
def built_fill(fill: Path, shared: Path) -> Path:
    """Calibrated on two prompts and one picture; measured on two and two."""
    out, given = shared / "fill", shared / "fill-given"

    def make() -> None:
        pictures, others = models.pictures(given, 1), models.pictures(shared / "fill-references", 2)
        code, stdout, stderr = build("--model", fill, "--out", out, "--pictures", pictures, "--reference-pictures",
                                     others, "--preset", "svdq-int4", *SMALL, *FEW)  # fmt: skip
        assert code == 0, stderr
        assert "report.html" in stdout

    once(shared / "fill-built", make)
    return out


def test_fill_is_calibrated_and_measured_on_its_pictures(built_fill: Path) -> None:
    artifact = Artifact.open(built_fill)
    assert artifact.manifest["pipeline"] == "FluxFillPipeline"
    assert artifact.pictures == PictureRule("image", "mask_image")
    assert artifact.manifest["latents"]["channels"] == 4
    stored = {n for n in artifact.manifest["files"] if n.startswith("references/pictures/")}
    assert stored == {f"references/pictures/{n}.png" for n in ("0000", "0000.mask", "0001", "0001.mask")}
    rows = artifact.manifest["layers"]["svdq-int4"]["transformer"]
    assert any(row["alpha"] or row["beta"] for row in rows.values())  # smoothed, so calibrated
    report = json.loads((built_fill / "report.json").read_text(encoding="utf-8"))
    four, sixteen = (next(p for p in report["presets"] if p["name"] == n) for n in ("svdq-int4", "fp16"))
    assert 20 < four["fidelity"]["psnr_db"]["mean"] < sixteen["fidelity"]["psnr_db"]["mean"]
    assert four["latency"]["components"]["vae_encoder"]["calls"] == 1


def test_fill_draws_and_is_validated(built_fill: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    with engines.load(built_fill) as pipe:
        drawn = [
            np.asarray(pipe("a red circle", image=image, mask=Image.new("L", (32, 32), white), steps=2), int)
            for white in (0, 255)
        ]
    assert np.abs(drawn[0] - drawn[1]).max() > 2
    command = [sys.executable, "-m", "engines.validate", built_fill, "--json", "--runs", "1", "--max-seconds", "0.1",
               "--min-psnr", "20"]  # fmt: skip
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fidelity"]["compared"] == "the 16-bit references stored, 2 prompts"


def test_control_is_built_from_its_weights_alone(control: Path, tmp_path: Path) -> None:
    out = tmp_path / "control"
    code, stdout, stderr = build("--model", control, "--out", out, "--data-free", "--references", "0", *FEW)
    assert code == 0, stderr
    assert "nothing was run" in stdout
    artifact = Artifact.open(out)
    assert artifact.pictures == PictureRule("control_image") and artifact.manifest["references"] == {}
    with engines.load(out) as pipe:
        drawn = [
            np.asarray(pipe("a red circle", image=Image.new("RGB", (32, 32), colour), steps=2), int)
            for colour in ("white", "black")
        ]
    assert type(pipe.diffusers()).__name__ == "FluxControlPipeline"
    assert np.abs(drawn[0] - drawn[1]).max() > 0


def test_pictures_that_are_missing_or_broken_are_refused_before_anything_is_written(
    fill: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def said(*arguments: object) -> str:
        sentence = refused(capsys, "--model", fill, "--out", out, *arguments)
        assert not out.exists()
        return sentence

    assert "--pictures" in (sentence := said()) and "--data-free --references 0" in sentence
    assert "none to calibrate on" in said("--dry-run")
    bare = models.pictures(tmp_path / "bare", 1, mask=False)
    assert "picture-0.png has no mask" in said("--pictures", bare)
    (bare / "picture-0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "picture-0.png cannot be read as an image" in said("--pictures", bare)
    assert "holds no picture" in said("--pictures", fill / "vae")
    assert "leave out --pictures" in said("--pictures", bare, "--data-free")
