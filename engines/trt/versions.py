"""Versions of TensorRT, and which one this machine has."""

from __future__ import annotations

import ctypes
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError

#: The first version whose Python API and plugin interface (IPluginV3) we build with; earlier ones: trtexec 8.6 only.
OLDEST_API = (10, 3)
#: Its documentation says that an engine built to be refitted can lose a product's bias, which no refit reaches then.
NO_REFIT = (11, 3)


@dataclass(frozen=True, order=True)
class Version:
    """10.3.0, ordered as one expects."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """Of "10.3.0", "10.3" or "8.6.1.6" (what follows the patch is dropped). Raises UserError for anything else."""
        found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.\w+)*", text.strip())
        if not found:
            raise UserError(f"{text!r} is no TensorRT version: give one like 10.3.0.")
        return cls(*(int(part or 0) for part in found.groups()))

    @classmethod
    def of_number(cls, number: int) -> Version:
        """Of NV_TENSORRT_VERSION: 8601 is 8.6.1 and, since TensorRT 10, 100300 is 10.3.0."""
        scale = 10000 if number >= 100000 else 1000
        return cls(number // scale, number % scale // 100, number % 100)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def short(self) -> str:
        """Major and minor, as file names have them."""
        return f"{self.major}.{self.minor}"

    @property
    def shell(self) -> int:
        """Which shell of the plugin it loads: 8, or 10 for TensorRT 10 and later."""
        return 8 if self.major < 10 else 10


def python_module() -> Any:
    """The tensorrt module, or None where it is not installed or its libraries do not load."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError):
        return None


def of_module() -> Version | None:
    """The version of the Python module, or None."""
    module = python_module()
    return Version.parse(module.__version__) if module else None


def of_library() -> Version | None:
    """The version that libnvinfer says it is (getInferLibVersion), or None where the loader finds none."""
    for name in ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so"):
        try:
            return Version.of_number(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
    return None


def installed(trtexec: Path | None = None) -> Version | None:
    """The version here: of the Python module, else of libnvinfer, else of trtexec; None without TensorRT."""
    from engines.trt import trtexec as tool

    found = of_module() or of_library()
    if found:
        return found
    path = trtexec or tool.find()
    return tool.version(path) if path else None
