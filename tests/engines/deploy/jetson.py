"""A Jetson of stand-ins: its /etc and /proc, its trtexec, tensorrt and driver, and nothing that a device lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

STAND_IN = Path(__file__).parent / "stand_in"
LIBCUDA = Path(__file__).parents[2] / "plugins" / "stand_in" / "libcuda.c"
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"


FORBID = """
import sys

class Absent:
    names = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "safetensors", "typer", "skimage", "filelock"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} on a device")

sys.meta_path.insert(0, Absent())
"""


@dataclass
class Jetson:
    """A device of stand-ins with a bundle on it. `root` holds its /etc and /proc, `environment` what commands see."""

    root: Path
    bundle: Path
    environment: dict[str, str] = field(default_factory=dict)

    def build(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._run("bash", str(self.bundle / "build.sh"), *arguments, **variables)

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._run(sys.executable, str(self.bundle / "run.py"), *map(str, arguments), **variables)

    def _run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **variables}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def place(bundle: Path, tmp_path: Path, libcuda: Path) -> Jetson:
    """A copy of `bundle` on a Jetson Orin Nano with JetPack 6.2, all below `tmp_path`."""
    root, tools, modules = tmp_path / "root", tmp_path / "tools", tmp_path / "modules"
    for name, text in (
        ("etc/nv_tegra_release", RELEASE),
        ("proc/device-tree/model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"),
        ("proc/meminfo", "MemTotal: 7990000 kB\nMemAvailable: 6000000 kB\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    tools.mkdir()
    script(tools / "trtexec", f'exec "{sys.executable}" "{STAND_IN / "trtexec.py"}" "$@"')
    script(
        tools / "df",
        'echo "Filesystem 1024-blocks Used Available"; echo "disk 9 9 ${STAND_IN_FREE_KB:-90000000} 9% /"',
    )
    modules.mkdir()
    shutil.copyfile(STAND_IN / "tensorrt.py", modules / "tensorrt.py")
    # What a device does not have cannot be imported there.
    (modules / "sitecustomize.py").write_text(FORBID)
    copy = Path(shutil.copytree(bundle, tmp_path / "device" / "deploy"))
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(modules),
        "SVDQ_ROOT": str(root),
        "SVDQ_LIBCUDA": str(libcuda),
        "STAND_IN_PYTHON": sys.executable,
        "STAND_IN_WORKER": str(STAND_IN / "worker.py"),
    }
    return Jetson(root, copy, environment)


def compile_libcuda(folder: Path) -> Path:
    """The stand-in driver as a library."""
    made = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-std=c11", "-shared", "-fPIC", str(LIBCUDA), "-o", str(made)], check=True)
    return made


def script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(0o755)
