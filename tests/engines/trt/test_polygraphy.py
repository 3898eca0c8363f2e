"""Polygraphy reads our graphs as they are: the lines that docs/tensorrt.md shows, those that need no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.manifest import Artifact
from engines import shapes
from tests.engines.trt.small import PRESET

DOCS = Path(__file__).parents[3] / "docs/tensorrt.md"
polygraphy = pytest.importorskip("polygraphy")


def run(*words: str) -> str:
    """Its output; it must end well."""
    command = [sys.executable, "-m", "polygraphy", *words]
    environment = {**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


@pytest.mark.parametrize("form", ["portable", "plugin"])
def test_inspect_reads_both_forms(pristine: Path, form: str) -> None:
    artifact = Artifact.open(pristine, verify=False)
    model = artifact.model if form == "portable" else artifact.tensorrt
    said = run("inspect", "model", str(model("transformer", PRESET)), "--show", "layers")
    assert "x [dtype=float16, shape=('batch', 'tokens', 128)]" in said
    assert said.count("SvdqLinear") >= 7


def test_run_computes_the_portable_form_with_onnxruntime(pristine: Path) -> None:
    artifact = Artifact.open(pristine, verify=False)
    model = artifact.model("transformer", PRESET)
    sizes = shapes.input_shapes(artifact, "transformer", model)
    given = [f"{name}:[{','.join(map(str, shape))}]" for name, shape in sizes.items()]
    said = run("run", str(model), "--onnxrt", "--input-shapes", *given, "--validate")
    assert "PASSED | Output: 'y' is valid" in said
    assert "y [dtype=float16, shape=(1, 64, 128)]" in said


def test_the_documented_lines_are_these() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for line in ("polygraphy inspect model", "polygraphy run", "--onnxrt", "--input-shapes", "--trt --plugins"):
        assert line in text
