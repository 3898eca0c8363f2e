"""What several test files need: sources with tiny kernels, and reasons to skip where a compiler is missing."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from plugins import compilers, library, toolchain
from plugins.architectures import Architecture, find
from plugins.errors import PluginError

STAND_IN = Path(__file__).parent / "stand_in"


def compiler_for(name: str) -> compilers.Compiler:
    """The compiler for an architecture; skips the test, saying what to install, where there is none."""
    try:
        return compilers.choose(find(name), compilers.available())
    except PluginError as e:
        pytest.skip(str(e))


def needs_fatbinary() -> None:
    if compilers.fatbinary() is None:
        pytest.skip("CUDA's fatbinary command is missing: install a CUDA 13 toolkit")


def needs_cross_compiler() -> None:
    if not shutil.which(toolchain.CROSS_COMPILER):
        pytest.skip(f"{toolchain.CROSS_COMPILER} is missing: apt-get install g++-aarch64-linux-gnu")


def needs_tensorrt(major: int) -> toolchain.Headers:
    """TensorRT's headers; skips where they are neither here nor to be fetched."""
    try:
        return toolchain.tensorrt_headers(major)
    except PluginError as e:
        pytest.skip(str(e))


def stand_in_sources(directory: Path) -> Path:
    """A copy of plugins/ whose kernels compile in a second."""
    copy = directory / "plugins"
    shutil.copytree(library.SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    for file in STAND_IN.iterdir():
        shutil.copy(file, copy / "svdq_linear" / "kernels")
    return copy


def packed_images(image: bytes) -> dict[int, tuple[int, bytes]]:
    """The cubins of a fat binary: compute capability (87) → flags and bytes as stored.

    Its format is NVIDIA's own; these fields have been the same from CUDA 11 to 13.
    """
    magic, _, header, size = struct.unpack_from("<IHHQ", image)
    assert magic == 0xBA55ED50
    found, at = {}, header
    while at < header + size:
        kind, _, entry, stored = struct.unpack_from("<HHIQ", image, at)
        assert kind == 2  # a cubin; PTX is 1
        (sm,), (flags,) = struct.unpack_from("<I", image, at + 28), struct.unpack_from("<Q", image, at + 40)
        found[sm] = flags, image[at + entry : at + entry + stored]
        at += entry + stored
    return found


def number(architecture: Architecture) -> int:
    """87 for "87", 90 for "90a"."""
    return int(architecture.name.rstrip("af"))
