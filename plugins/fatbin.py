"""Several cubins in one image, out of which the driver takes the one for its GPU (cuModuleLoadData)."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from plugins.compilers import INSTALL, fatbinary
from plugins.errors import PluginError


def pack(cubins: Mapping[str, bytes]) -> bytes:
    """The image of cubins given by architecture name ("87", "90a").

    None at all give no bytes, for a library that only stand-ins of the driver load. Where CUDA's packing tool is
    missing, one alone is the image itself: drivers load a cubin as they do a fat binary. Several raise PluginError.
    """
    command = fatbinary()
    if not cubins or (command is None and len(cubins) == 1):
        return next(iter(cubins.values()), b"")
    if command is None:
        raise PluginError(
            f"Packing kernels for {len(cubins)} architectures needs CUDA's fatbinary command: {INSTALL[13]}."
        )
    with tempfile.TemporaryDirectory() as scratch:
        images = []
        for name, cubin in cubins.items():
            path = Path(scratch) / f"sm_{name}.cubin"
            path.write_bytes(cubin)
            images.append(f"--image3=kind=elf,sm={name},file={path}")
        packed = Path(scratch) / "kernels.fatbin"
        _run(command, ["--64", *_compression(command), f"--create={packed}", *images])
        return packed.read_bytes()


def _compression(command: Path) -> list[str]:
    """LZ4, to a quarter of the size. CUDA 13's default, zstd, makes a twentieth, but drivers before 12.4 refuse it."""
    modes = "--compress-mode" in _run(command, ["--help"])  # since CUDA 12.8; before, LZ4 is all there is
    return ["--compress-all", *(["--compress-mode=speed"] if modes else [])]


def _run(command: Path, arguments: list[str]) -> str:
    ran = subprocess.run([str(command), *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise PluginError(f"{command} failed: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout
