"""The CUDA compilers of this machine, and the cubins they make of plugins/svdq_linear/kernels/kernels.cu.

A cubin loads into drivers of its compiler's CUDA major version and later ones. So those for JetPack 6 (driver 12.6)
must come from CUDA 12, those for Thor and Blackwell from CUDA 13. CUDA 12.6's compiler is also there as a pip package:
NVRTC, a library without the nvcc command. The kernels include no CUDA header, so that NVRTC needs nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plugins import cache
from plugins.architectures import Architecture
from plugins.errors import PluginError
from plugins.nvrtc import CompileFailed, Nvrtc

SOURCE = Path(__file__).parent / "svdq_linear" / "kernels" / "kernels.cu"

#: The same for both compilers: neither trades accuracy for speed. The log then has every kernel's resources.
COMMON = ("-std=c++17", "--ptxas-options=-v", "--ptxas-options=-warn-spills")

#: How to get what is missing, by the CUDA major version that a cubin needs.
INSTALL = {
    12: "pip install 'nvidia-cuda-nvrtc-cu12==12.6.*', or install a CUDA 12 toolkit",
    13: "pip install -e '.[plugins]', or install a CUDA 13 toolkit",
}


@dataclass(frozen=True)
class Compiler:
    """nvcc, whose `path` is the command, or NVRTC, whose `path` is the library."""

    name: str
    version: tuple[int, int]
    path: Path

    def __str__(self) -> str:
        return f"{self.name} {self.version[0]}.{self.version[1]}"

    def compile(self, source: Path, architecture: Architecture) -> tuple[bytes, str]:
        """The cubin and the compiler's log. Raises CompileFailed."""
        options = [*COMMON, f"-arch={architecture.flag}"]
        if self.name == "NVRTC":
            return Nvrtc(self.path).compile(source, [*options, f"-I{source.parent}"])
        with tempfile.TemporaryDirectory() as scratch:
            cubin = Path(scratch) / "kernels.cubin"
            command = [str(self.path), *options, "-cubin", "-o", str(cubin), str(source)]
            ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if ran.returncode:
                raise CompileFailed(ran.stdout)
            return cubin.read_bytes(), ran.stdout


@dataclass(frozen=True)
class Compiled:
    """A cubin, and what its compiler said: every kernel's resources (resources.py reads them)."""

    cubin: bytes
    log: str


def available() -> list[Compiler]:
    """All that are here, NVRTC first: its version is the pinned one that the tests ran with."""
    return [*_nvrtcs(), *_nvccs()]


def choose(architecture: Architecture, compilers: Sequence[Compiler], driver: int | None = None) -> Compiler:
    """The first compiler that knows the architecture and whose cubins load into the architecture's oldest driver.

    `driver`: the CUDA major version of the only driver that matters, where that is known. Raises PluginError saying
    what to install.
    """
    newest = driver or architecture.driver
    for compiler in compilers:
        if architecture.first_cuda <= compiler.version and compiler.version[0] <= newest:
            return compiler
    here = ", ".join(map(str, compilers)) or "no CUDA compiler"
    wanted = max(architecture.first_cuda[0], min(newest, max(INSTALL)))
    raise PluginError(
        f"{architecture.flag} needs a compiler of CUDA {wanted}, so that drivers of CUDA {newest} load its kernels, "
        f"and here is {here}: {INSTALL[wanted]}."
    )


def cubin(architecture: Architecture, compiler: Compiler, source: Path = SOURCE) -> Compiled:
    """The kernels for `architecture`, compiled now or found in the cache. About a minute of one core.

    Raises PluginError where the source does not compile.
    """

    def make(directory: Path) -> None:
        try:
            image, log = compiler.compile(source, architecture)
        except CompileFailed as e:
            raise PluginError(f"{compiler} cannot compile {source} for {architecture.flag}:\n{e}") from e
        (directory / "kernels.cubin").write_bytes(image)
        (directory / "log").write_text(log, encoding="utf-8")

    made = cache.entry(cubin_key(architecture, compiler, source), make)
    return Compiled((made / "kernels.cubin").read_bytes(), (made / "log").read_text(encoding="utf-8"))


def cubin_key(architecture: Architecture, compiler: Compiler, source: Path = SOURCE) -> str:
    """The hash of all that makes a cubin; the source includes files of its own directory only."""
    kernels = [f for f in source.parent.iterdir() if f.suffix in (".cu", ".cuh", ".h")]
    sources = cache.files_key(kernels, source.parent)
    return "cubin-" + cache.key_of(sources, source.name, str(compiler), architecture.flag, *COMMON)


def fatbinary() -> Path | None:
    """The command that packs cubins, the newest there is: it comes with nvcc and packs older compilers' cubins too."""
    for compiler in sorted(_nvccs(), key=lambda c: c.version, reverse=True):
        path = compiler.path.resolve().with_name("fatbinary")
        beside = path if path.exists() else compiler.path.with_name("fatbinary")
        if beside.exists():
            return beside
    return None


def _nvccs() -> list[Compiler]:
    """nvcc of $CUDA_HOME, of PATH, of the usual place and of pip's packages, each version once."""
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    if on_path := shutil.which("nvcc"):
        places.append(Path(on_path).parent)
    places += [Path("/usr/local/cuda/bin"), *(d / "bin" for d in _wheels("cu13"))]
    found: dict[tuple[int, int], Compiler] = {}
    for place in places:
        path = place / "nvcc"
        if path.exists() and (version := _nvcc_version(path)):
            found.setdefault(version, Compiler("nvcc", version, path))
    return list(found.values())


def _nvcc_version(path: Path) -> tuple[int, int] | None:
    try:
        said = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"release (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else None


def _nvrtcs() -> list[Compiler]:
    """NVRTC of pip's packages, CUDA 12's before CUDA 13's."""
    found = []
    for package, name in (("cuda_nvrtc", "libnvrtc.so.12"), ("cu13", "libnvrtc.so.13")):
        for directory in _wheels(package):
            path = directory / "lib" / name
            if path.exists():
                try:
                    found.append(Compiler("NVRTC", Nvrtc(path).version(), path))
                except OSError:  # another machine's
                    continue
    return found


def _wheels(package: str) -> list[Path]:
    """Directories of NVIDIA's pip packages called nvidia/<package>; nvidia is a namespace of many distributions."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return [Path(p) / package for p in places or () if (Path(p) / package).is_dir()]
