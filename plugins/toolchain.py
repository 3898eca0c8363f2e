"""The build tools of this machine, and TensorRT's headers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from plugins import cache
from plugins.architectures import AARCH64
from plugins.errors import PluginError

CMAKE_FILES = Path(__file__).parent / "cmake"
CROSS_COMPILER = "aarch64-linux-gnu-g++"


def cmake() -> str:
    """The command of this Python's environment, else of PATH. Raises PluginError where there is none."""
    beside = Path(sys.executable).with_name("cmake")
    found = str(beside) if beside.exists() else shutil.which("cmake")
    if not found:
        raise PluginError("Building the plugin needs CMake 3.16 or later: pip install cmake.")
    return found


@dataclass(frozen=True)
class Tools:
    """What builds for one machine: CMake's options, and all that decides what comes out."""

    options: tuple[str, ...]
    identity: tuple[str, ...]


def tools_for(machine: str) -> Tools:
    """The tools that build for `machine` here. Raises PluginError naming what is missing and how to get it."""
    options: tuple[str, ...] = ()
    compiler = os.environ.get("CXX") or "c++"
    if machine != platform.machine():
        if machine != AARCH64:
            raise PluginError(f"A library for {machine} is built on such a machine, and this is {platform.machine()}.")
        compiler = CROSS_COMPILER
        options = (f"-DCMAKE_TOOLCHAIN_FILE={CMAKE_FILES / 'aarch64-linux-gnu.cmake'}",)
    if not shutil.which(compiler.split()[0]):
        package = "g++-aarch64-linux-gnu" if compiler == CROSS_COMPILER else "g++"
        raise PluginError(f"The C++ compiler {compiler} for {machine} is missing: apt-get install {package}.")
    ninja = Path(sys.executable).with_name("ninja")
    if ninja.exists() or shutil.which("ninja"):
        program = ninja if ninja.exists() else shutil.which("ninja")
        options += ("-GNinja", f"-DCMAKE_MAKE_PROGRAM={program}")
    elif not shutil.which("make"):
        raise PluginError("Building the plugin needs ninja or make: pip install ninja.")
    flags = tuple(os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS"))
    return Tools(options, (compiler, version_of([*compiler.split(), "--version"]), *flags))


def version_of(command: list[str]) -> str:
    """What a command says of its version."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@dataclass(frozen=True)
class Headers:
    """TensorRT's headers: their directory and version "10.3.0"."""

    directory: str
    version: str

    def key(self) -> str:
        """The hash of their contents."""
        return cache.files_key(Path(self.directory).glob("NvInfer*.h"), Path(self.directory))


def tensorrt_headers(tensorrt: int) -> Headers:
    """Headers of TensorRT 10 (or later) or 8: of this machine, of $TensorRT_ROOT, or fetched once.

    Raises PluginError where there are none.
    """
    script = str(CMAKE_FILES / "tensorrt_headers.cmake")
    with cache.locked("tensorrt") as downloads:  # two at once would write into one file
        command = [cmake(), f"-DSVDQ_TENSORRT={tensorrt}", f"-DSVDQ_DOWNLOADS={downloads}", "-P", script]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = dict(re.findall(r"-- (SVDQ_TENSORRT_\w+)=(.+)", said))
    if "SVDQ_TENSORRT_INCLUDE" not in found:
        root = os.environ.get("TensorRT_ROOT")  # noqa: SIM112 (CMake's spelling)
        where = f"in $TensorRT_ROOT ({root})" if root else "in the usual places, nor could they be fetched from GitHub"
        raise PluginError(
            f"There are no headers of TensorRT {tensorrt} {where}: set TensorRT_ROOT to a TensorRT of that version."
        )
    return Headers(found["SVDQ_TENSORRT_INCLUDE"], found["SVDQ_TENSORRT_VERSION"])
