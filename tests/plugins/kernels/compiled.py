"""The kernels' own source compiled for the CPU: a libcuda that runs them, and the library that launches them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from artifact.files import written_whole

SOURCES = Path(__file__).resolve().parents[3] / "plugins" / "svdq_linear"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1")

# No image of real kernels: the libcuda below does not look at it.
FATBIN = '.global svdq_fatbin\nsvdq_fatbin: .byte 0\n.section .note.GNU-stack,"",@progbits\n'


@dataclass(frozen=True)
class Compiled:
    """Paths of both libraries, and what a process needs in its environment to load them."""

    cuda: Path
    linear: Path
    environment: dict[str, str]


def compile_for_cpu(folder: Path, sources: Path = SOURCES, sanitize: bool = False) -> Compiled:
    """Compile `sources` into `folder`, once for all processes. Raises CalledProcessError where that fails."""
    compiler = os.environ.get("CXX", "g++")
    flags = [
        "-std=c++17",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    flags += ["-O1", *SANITIZERS] if sanitize else ["-O2", "-march=native"]
    digest = hashlib.sha256(" ".join((compiler, *flags)).encode())
    for path in sorted(p for p in sources.rglob("*") if p.suffix in (".cu", ".cuh", ".h", ".cpp")):
        digest.update(path.read_bytes())
    home = folder / digest.hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    cuda, linear = home / "libcuda.so.1", home / "libsvdq_linear.so"
    with FileLock(home / "lock"):
        if not linear.exists():
            (home / "fatbin.S").write_text(FATBIN)
            _run([compiler, *flags, sources / "on_cpu" / "libcuda.cpp", "-o", cuda])
            launchers = [sources / f"{name}.cpp" for name in ("plan", "driver", "launch")]
            with written_whole(linear) as partial:
                _run([compiler, *flags, *launchers, home / "fatbin.S", "-o", partial, "-ldl"])
    environment = {"SVDQ_LIBCUDA": str(cuda), "SVDQ_LIBRARY": str(linear)}
    if sanitize:
        libraries = [_run([compiler, f"-print-file-name=lib{n}.so"]).strip() for n in ("asan", "ubsan")]
        # Python itself leaks at exit, and is not asked about.
        environment |= {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    return Compiled(cuda, linear, environment)


def changed_copy(folder: Path, file: str, old: str, new: str) -> Path:
    """The sources with `old` in `file`, which must occur there once, replaced."""
    copy = folder / "svdq_linear"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("tensorrt", "*.py", "__pycache__"))
    text = (copy / file).read_text()
    assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
    (copy / file).write_text(text.replace(old, new))
    return copy


def _run(command: Sequence[object]) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout
