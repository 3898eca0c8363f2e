"""The GPU that engines run on, as far as two measurements must be told apart by it."""

from __future__ import annotations

from plugins.errors import PluginError


def accelerator() -> str | None:
    """Name of the first GPU as its driver gives it ("Orin", "NVIDIA H200"); None without one."""
    from plugins.device import CudaError, Device

    try:
        with Device() as device:
            return device.name
    except (PluginError, CudaError):
        return None
