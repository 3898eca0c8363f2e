"""The plugin in a bundle: its source always, and its library for the device where one could be built here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import plugins
from artifact.files import written_whole
from plugins import library
from plugins.architectures import AARCH64, for_capability
from plugins.errors import PluginError

SOURCES = Path(plugins.__file__).parent
SUFFIXES = {".cpp", ".h", ".cu", ".cuh", ".in", ".cmake", ".map", ".sha256", ".txt"}
LEFT_OUT = {"on_cpu", "__pycache__"}  # the kernels' twin for machines without a GPU is for tests


def copy_source(to: Path) -> None:
    """What `cmake -S` needs to build the library with nvcc and a C++ compiler, and nothing else."""
    for path in sorted(SOURCES.rglob("*")):
        parts = path.relative_to(SOURCES).parts
        if path.is_file() and path.suffix in SUFFIXES and not LEFT_OUT & set(parts):
            with written_whole(to.joinpath(*parts)) as partial:
                shutil.copyfile(path, partial)


def library_name(shell: int) -> str:
    """File name of the library with the shell for TensorRT 8 or for 10 and later."""
    return f"lib{library.PRODUCTS[shell]}.so"


def add_library(to: Path, capability: str, shell: int) -> dict[str, Any]:
    """Copy the aarch64 library for one compute capability into `to`; {"library", "built": "here", ...}.

    Where it cannot be built here, "built" is "on the device" and "why" says what is missing.
    """
    name = library_name(shell)
    try:
        made = library.find_or_build(shell, AARCH64, [for_capability(capability)])
    except PluginError as e:
        return {"library": name, "built": "on the device", "why": str(e)}
    with written_whole(to / name) as partial:
        shutil.copyfile(made.path, partial)
        partial.chmod(0o755)
    return {"library": name, "built": "here", "sha256": made.sha256, "compilers": made.compilers,
            "headers": made.tensorrt}  # fmt: skip
