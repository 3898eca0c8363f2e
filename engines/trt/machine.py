"""The GPU of this machine, as far as engines depend on it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifact.free import available_bytes
from plugins.errors import PluginError


class _MemoryInfo(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t."""

    _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong), ("gpu", ctypes.c_uint), ("part", ctypes.c_uint)]


LIBRARY = "libnvidia-ml.so.1"
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
_TOO_FEW = 7  # NVML_ERROR_INSUFFICIENT_SIZE


def free_bytes(root: Path = Path("/"), library: str = LIBRARY) -> tuple[str, int] | None:
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


def process_bytes(library: str = LIBRARY) -> Callable[[], int] | None:
    """What this process holds of all GPUs, by NVML (0 where it does not know the process, as in a container); None
    without NVML."""
    try:
        nvml, count = ctypes.CDLL(library), ctypes.c_uint()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return None
        devices = [ctypes.c_void_p() for _ in range(count.value)]
        if any(nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(d)) for i, d in enumerate(devices)):
            return None
        listed = nvml.nvmlDeviceGetComputeRunningProcesses_v3
    except (OSError, AttributeError):
        return None

    def used() -> int:
        found = [p for device in devices for p in _processes(listed, device)]
        return sum(p.used for p in found if p.pid == os.getpid() and p.used != _UNKNOWN)

    return used


def _processes(listed: Any, device: ctypes.c_void_p) -> list[_ProcessInfo]:
    """The processes that compute on a device. Their number may grow between two questions."""
    room = 32
    while True:
        count, rows = ctypes.c_uint(room), (_ProcessInfo * room)()
        status = listed(device, ctypes.byref(count), rows)
        if status == _TOO_FEW:
            room = 2 * max(room, count.value)
            continue
        return [] if status else list(rows[: count.value])


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
