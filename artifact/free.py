"""How much memory is free and how many cores there are for us; giving memory back."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """What programs can still take without swapping: MemAvailable of /proc/meminfo, or what this container may have.

    `root` stands in for the machine's file system in tests. A container's limit is that of cgroup 2.
    """
    lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = root / "sys/fs/cgroup"
    try:
        allowed, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no container, or "max": no limit
        return free
    return min(free, allowed - used + int(kept.get("inactive_file", 0)))


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may run on: those of its affinity, or as many as its container gets time of.

    `root` as above. A container's quota is that of cgroup 2, "200000 100000" for two cores.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (int(n) for n in (root / "sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no container, or "max": no quota
        return cores
    return max(1, min(cores, quota // period))


def trim() -> None:
    """Give memory that was freed back to the system: glibc keeps freed small blocks for later otherwise."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
