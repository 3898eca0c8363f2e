"""Polygraphy reads our graphs as they are: the lines that docs/tensorrt.md shows, those that need no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import shapes
from engines.trt.polygraphy import load, without_ours
from tests.engines.trt import stand_in_tensorrt
from tests.engines.trt.small import PRESET

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs/tensorrt.md"
pytest.importorskip("polygraphy")


def started(*words: str) -> subprocess.CompletedProcess[str]:
    """By our own entry, which is polygraphy's but for --plugins."""
    command = [sys.executable, "-m", "engines.trt.polygraphy", *words]
    environment = {**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def run(*words: str) -> str:
    """Its output; it must end well."""
    done = started(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


@pytest.mark.parametrize("form", ["portable", "plugin"])
def test_inspect_reads_both_forms(pristine: Path, form: str) -> None:
    artifact = Artifact.open(pristine, verify=False)
    model = artifact.model if form == "portable" else artifact.tensorrt
    said = run("inspect", "model", str(model("transformer", PRESET)), "--show", "layers")
    assert "x [dtype=float16, shape=('batch', 'tokens', 128)]" in said
    assert said.count("SvdqLinear") >= 7


def test_run_computes_the_portable_form_with_onnxruntime(pristine: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(pristine, verify=False)
    model = artifact.model("transformer", PRESET)
    sizes = shapes.input_shapes(artifact, "transformer", model)
    given = [f"{name}:[{','.join(map(str, shape))}]" for name, shape in sizes.items()]
    inputs, outputs = str(tmp_path / "inputs.json"), str(tmp_path / "portable.json")
    once = ("--save-inputs", inputs, "--save-outputs", outputs)
    said = run("run", str(model), "--onnxrt", "--input-shapes", *given, "--validate", *once)
    assert "PASSED | Output: y is valid" in said
    assert "y [dtype=float16, shape=(1, 64, 128)]" in said
    again = run("run", str(model), "--onnxrt", "--load-inputs", inputs, "--load-outputs", outputs, "--atol", "0")
    assert "PASSED | Runtime" in again and "Accuracy Summary" in again
    other = started("run", str(artifact.model("transformer", "fp16")), "--onnxrt", "--load-inputs", inputs,
                    "--load-outputs", outputs, "--atol", "0", "--rtol", "0")  # fmt: skip
    assert other.returncode != 0 and "FAILED" in other.stdout  # 16 bits are not 4


@pytest.mark.parametrize(
    ("given", "kept", "ours"),
    [
        ("run m.onnx --trt", "run m.onnx --trt", []),
        ("run m.onnx --trt --plugins a/libsvdq_plugin.so --strongly-typed", "run m.onnx --trt --strongly-typed", 1),
        ("run m.onnx --plugins other.so libsvdq_plugin_trt8.so -v", "run m.onnx --plugins other.so -v", 1),
        ("run m.onnx --trt --plugins libsvdq_plugin.so", "run m.onnx --trt", 1),
        ("run --plugins libsvdq_plugin.so other.so", "run --plugins other.so", 1),
        ("inspect model libsvdq_plugin.so", "inspect model libsvdq_plugin.so", []),
    ],
)
def test_our_library_is_taken_out_of_plugins_and_nothing_else(given: str, kept: str, ours: object) -> None:
    words, libraries = without_ours(given.split())
    assert words == kept.split() and len(libraries) == (ours or 0)


@pytest.mark.parametrize("version", ["10.3.0", "11.1.0"])
def test_it_is_loaded_into_tensorrt_s_registry(version: str, library: Path) -> None:
    trt = stand_in_tensorrt.module(version)
    load([library], trt)
    assert trt.registered == [str(library)]
    with pytest.raises(UserError, match="tensorrt is not here"):
        load([library], None)


def test_the_documented_lines_are_these() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for line in ("polygraphy inspect model", "polygraphy run", "--onnxrt", "--input-shapes", "--trt --plugins"):
        assert line in text
