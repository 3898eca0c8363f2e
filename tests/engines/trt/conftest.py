"""A small artifact, a machine that seems to have a GPU, and the stand-ins of TensorRT."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from artifact.manifest import Artifact
from engines.trt import machine, trtexec, versions
from passes.solved import Solved
from tests.engines.trt import small, stand_in_tensorrt, stand_in_trtexec
from tests.passes.conftest import solve  # noqa: F401 (a fixture)

STAND_IN = Path(__file__).with_name("stand_in_trtexec.py")
VERSIONS = ("8.6.1", "10.3.0", "10.16.0", "11.1.0")
PYTHON_VERSIONS = VERSIONS[1:]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, solve: Callable[[ir.Model, str, str], Solved]) -> Path:  # noqa: F811
    return small.make(tmp_path_factory.mktemp("trt") / "small", solve).root


@pytest.fixture
def artifact(pristine: Path, tmp_path: Path) -> Artifact:
    """A copy of the small artifact that a test may build in and damage."""
    return Artifact.open(shutil.copytree(pristine, tmp_path / "small"), verify=False)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """What stands for the plugin's library."""
    path = tmp_path / "libsvdq_plugin.so"
    path.write_bytes(b"kernels")
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPU and TensorRT, whatever this one has."""
    monkeypatch.setattr(machine, "sm", lambda: None)
    monkeypatch.setattr(versions, "python_module", lambda: None)
    monkeypatch.setattr(versions, "of_library", lambda: None)
    monkeypatch.setattr(trtexec, "find", lambda *_: None)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch, bare: None) -> None:
    """A machine with the GPU of an Orin and nothing else."""
    monkeypatch.setattr(machine, "sm", lambda: 87)


@pytest.fixture
def with_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, orin: None) -> Callable[..., Path]:
    """Puts the stand-in of trtexec of a version on the machine, run in this process where no `process` is wanted."""

    def put(version: str, process: bool = False) -> Path:
        tool = command(tmp_path, version)
        monkeypatch.setattr(trtexec, "find", lambda *_: tool)
        if not process:
            monkeypatch.setattr(trtexec, "run", lambda words, timeout=None: _here(version, words[1:]))
        return tool

    return put


@pytest.fixture
def with_module(monkeypatch: pytest.MonkeyPatch, orin: None) -> Callable[[str], Any]:
    """Installs the stand-in of the Python package of a version."""

    def put(version: str) -> Any:
        module = stand_in_tensorrt.module(version)
        monkeypatch.setattr(versions, "python_module", lambda: module)
        return module

    return put


def _here(version: str, words: Sequence[str]) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as log:
        code = stand_in_trtexec.main(version, list(words))
    return code, log.getvalue()


def command(directory: Path, version: str) -> Path:
    """An executable that behaves as trtexec of that version."""
    tool = directory / "trtexec"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" {version} "$@"\n', encoding="utf-8")
    tool.chmod(0o755)
    return tool
