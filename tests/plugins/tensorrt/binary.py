"""What an ELF file asks of the system that loads it, read with binutils."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def _readelf(path: Path, *options: str) -> str:
    return subprocess.run(["readelf", "-W", *options, path], capture_output=True, text=True, check=True).stdout


def needed_libraries(path: Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", _readelf(path, "-d")))


def undefined_symbols(path: Path) -> set[str]:
    return set(re.findall(r" UND (\S+)", _readelf(path, "--dyn-syms")))


def newest_glibc(path: Path) -> tuple[int, ...]:
    """The newest version of glibc whose symbols it uses."""
    found = re.findall(r"GLIBC_(\d+)\.(\d+)", _readelf(path, "-V"))
    return max((int(major), int(minor)) for major, minor in found)
