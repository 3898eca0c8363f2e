"""Compilers, headers and runtimes for the C++ of this folder, each test skipped where its own are missing.

What is built or downloaded lies in ~/.cache/svdq-edge, under names that say what it was made of.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[3]
SHELL = ROOT / "plugins" / "svdq_linear" / "tensorrt"
TESTS = ROOT / "tests" / "plugins" / "tensorrt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svdq-edge"

V3 = [SHELL / name for name in ("fields.cpp", "inputs.cpp", "plugin.cpp", "creator.cpp")]
V2 = [SHELL / name for name in ("fields.cpp", "inputs.cpp", "plugin_v2.cpp")]
FAKE = TESTS / "fake_launch.cpp"

#: The timing cache's id ends with it (host.cpp).
HASH = '-DSVDQ_SOURCE_HASH="0123456789abcdef"'

#: As the product is compiled.
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fPIC"]
SANITISE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

#: Reports go where the test looks: a host captures stderr to read what the plugin said.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "log_path=stdout", "UBSAN_OPTIONS": "log_path=stdout:print_stacktrace=1"}


def headers(major: int) -> Path:
    """TensorRT's include directory: 10 (10.3 or later) from TensorRT_ROOT, 8 (8.5 or later) from TensorRT8_ROOT, or the
    system's where it is of that version."""
    variable, least = {10: ("TensorRT_ROOT", (10, 3)), 8: ("TensorRT8_ROOT", (8, 5))}[major]
    candidates = [Path("/usr/include/x86_64-linux-gnu"), Path("/usr/include/aarch64-linux-gnu"), Path("/usr/include")]
    if root := os.environ.get(variable):
        candidates = [Path(root) / "include"]
    for candidate in candidates:
        version = _version(candidate)
        if version >= least and (version < (9, 0)) == (major == 8):
            return candidate
    pytest.skip(f"no TensorRT {major} headers: set {variable} to a directory whose include/ has NvInferRuntime.h")


def _version(include: Path) -> tuple[int, int]:
    file = include / "NvInferVersion.h"
    if not (include / "NvInferRuntime.h").is_file() or not file.is_file():
        return (0, 0)
    text = file.read_text(encoding="utf-8")
    found = [
        re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? (\d+)", text) for part in ("MAJOR", "MINOR")
    ]
    return (int(found[0][1]), int(found[1][1])) if found[0] and found[1] else (0, 0)


def build(
    name: str,
    sources: Sequence[Path],
    include: Path,
    flags: Sequence[str],
    compiler: str = "g++",
) -> Path:
    """Compiles `sources` into one file, once for each state of the sources. A compiler's error fails the test."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    if any(flag.startswith("-fsanitize") for flag in flags):
        found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        if not Path(found.stdout.strip()).is_absolute():
            pytest.skip(f"{compiler} has no address sanitiser")
    command = [compiler, *FLAGS, *flags, "-isystem", str(include), "-idirafter", str(SHELL / "without_cuda")]
    command += ["-I", str(ROOT), *map(str, sources), "-ldl"]

    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr(command).encode() + version + (include / "NvInferVersion.h").read_bytes())
    for file in (*sorted(SHELL.parent.rglob("*.h")), *sorted(TESTS.glob("*.h")), *sources):
        digest.update(file.read_bytes())
    folder = CACHE / "built"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{digest.hexdigest()[:16]}"
    with FileLock(folder / f"{name}.lock"):
        if target.exists():
            return target
        for old in folder.glob(f"{name}-*"):
            if old.stat().st_mtime < time.time() - 7 * 24 * 3600:
                old.unlink()
        partial = folder / f"{name}.partial"
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-6000:]}"
        partial.replace(target)
    return target


def run(command: Sequence[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a host. Its output is for the assertion's message."""
    return subprocess.run(
        list(map(str, command)),
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


def cases(host: str) -> list[str]:
    """Names of the cases in a host's source."""
    return re.findall(r"^CASE\((\w+)\)", (TESTS / host).read_text(encoding="utf-8"), re.MULTILINE)


def pip_install(*requirements: str) -> Path:
    """A directory with packages of this interpreter, without what they depend on."""
    target = CACHE / "pip" / f"{'+'.join(requirements)}-py{sys.version_info.major}{sys.version_info.minor}"
    return _downloaded(target, ["install", "--target"], requirements)


def pip_unpack(requirement: str, platform: str) -> Path:
    """A directory with the unpacked wheel of another platform."""
    target = CACHE / "pip" / f"{requirement}-{platform}"
    _downloaded(target, ["download", "--only-binary=:all:", "--platform", platform, "--dest"], [requirement])
    for wheel in target.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        wheel.unlink()
    return target


def _downloaded(target: Path, verb: Sequence[str], requirements: Sequence[str]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        partial = Path(f"{target}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "pip", verb[0], "--quiet", "--no-deps", "--retries", "1", "--timeout", "30"]
        done = subprocess.run(
            [*command, *verb[1:], str(partial), *requirements], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            shutil.rmtree(partial, ignore_errors=True)
            reason = (done.stderr.strip() or "pip failed").splitlines()[-1]
            pytest.skip(f"pip cannot provide {' '.join(requirements)}: {reason}")
        partial.replace(target)
    return target
