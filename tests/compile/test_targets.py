"""What a build for a device leaves behind where no device is, and which presets it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import targets
from export.deliver import deliver
from export.options import Options
from export.stages import Stages
from tests.compile.commands import SMALL, compiled


def test_a_build_for_a_jetson_leaves_script_and_bundle_and_says_what_it_skipped(
    built: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "orin"
    compiled(monkeypatch, "--out", out, "--cache", cache, "--target", "orin-nano", *SMALL)
    stderr = capsys.readouterr().err
    skipped = json.loads((out / "manifest.json").read_text())["skipped"]
    assert any("No TensorRT engine" in s for s in skipped)
    assert all(s in " ".join(stderr.split()) for s in skipped), stderr
    script = (out / "engines/build-svdq-int4.sh").read_text()
    assert "trtexec" in script and "transformer/svdq-int4.trt.onnx" in script
    assert (out / "deploy/build.sh").is_file() and list(out.glob("deploy-*orin-nano.tar.zst"))


def test_where_no_bundle_is_to_be_had_the_build_says_so_and_goes_on(built: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(shutil.copytree(built, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache")))
    other = replace(artifact, manifest={**artifact.manifest, "pipeline": "FluxFillPipeline"})
    skipped = deliver(other, targets.find("orin-nano"), "svdq-int4", Stages(quiet=True))
    assert skipped[-1].startswith("No bundle was written for a Jetson Orin Nano")
    assert "cannot run a FluxFillPipeline" in skipped[-1] and not (artifact.root / "deploy").exists()


def test_the_cpu_gets_neither(built: Path) -> None:
    assert not (built / "engines").exists() and not (built / "deploy").exists()
    assert json.loads((built / "manifest.json").read_text())["skipped"] == []


def test_nvfp4_is_refused_on_orin_with_what_to_build_instead() -> None:
    with pytest.raises(UserError, match="Orin.* no FP4 .*svdq-int4"):
        Options(preset="svdq-nvfp4", target="orin-nano").check()
    with pytest.raises(UserError, match="no preset 'svdq-nvfp4'"):
        Options(preset="svdq-nvfp4", target="thor-t5000").check()
