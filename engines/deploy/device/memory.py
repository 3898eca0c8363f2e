"""How much memory a Jetson's programs share while a bundle runs: NVML does not say it there."""

from __future__ import annotations

from pathlib import Path

from plugins.device import Device

MEMINFO = Path("/proc/meminfo")


class LowWater:
    """The least free memory seen by `look`: cudaMemGetInfo's, and the system's MemAvailable.

    Sampled where `look` is called (after a component is opened and after every call), not in between. Other programs
    count: on a Jetson CPU and GPU share one memory.
    """

    def __init__(self, device: Device, meminfo: Path = MEMINFO) -> None:
        self._device, self._meminfo = device, meminfo
        self._first = self._now()
        self._least = self._first

    def look(self) -> None:
        self._least = min(self._least[0], (now := self._now())[0]), min(self._least[1], now[1])

    def taken(self) -> dict[str, int]:
        """Bytes that were free at first and not at the lowest point: {"gpu": ..., "system": ...}."""
        return {"gpu": self._first[0] - self._least[0], "system": self._first[1] - self._least[1]}

    def _now(self) -> tuple[int, int]:
        return self._device.memory()[0], available(self._meminfo)


def available(meminfo: Path = MEMINFO) -> int:
    """MemAvailable in bytes."""
    for line in meminfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
