"""The GPU of this machine, as far as engines depend on it."""

from __future__ import annotations

from plugins.errors import PluginError


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
