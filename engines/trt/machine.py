"""The GPU of this machine, as far as engines depend on it."""

from __future__ import annotations

import ctypes
from pathlib import Path

from artifact.free import available_bytes
from plugins.errors import PluginError


class _MemoryInfo(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def free_bytes(root: Path = Path("/"), library: str = "libnvidia-ml.so.1") -> tuple[str, int] | None:
    """What is free for any process on the first GPU, and who says so; None where nobody does.

    On a Jetson, whose GPU shares the system's memory and has no NVML for it, MemAvailable; else NVML.
    """
    if (root / "etc/nv_tegra_release").exists():
        return "MemAvailable", available_bytes(root)
    try:
        nvml, device, info = ctypes.CDLL(library), ctypes.c_void_p(), _MemoryInfo()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
            return None
        failed = nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(info))
        nvml.nvmlShutdown()
        return None if failed else ("NVML", int(info.free))
    except (OSError, AttributeError):
        return None


def sm() -> int | None:
    """87 for compute capability 8.7, from the driver, else from NVML or nvidia-smi; None without a GPU."""
    from engines.targets import listing
    from plugins.device import Device

    try:
        with Device() as device:
            return int(device.capability.replace(".", ""))
    except (PluginError, RuntimeError):
        pass
    try:
        capability = listing().strip().splitlines()[0].rpartition(",")[2].strip()
        return int(capability.replace(".", ""))
    except Exception:  # neither NVML nor nvidia-smi, or none of them answers
        return None
