"""Memory over time: what this process holds of the memory that the engines are in, sampled by a thread."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.free import available_bytes


@dataclass(frozen=True)
class Probe:
    """`now` gives bytes; `name` says of what; `high_water` gives the process's own peak, where it has one."""

    name: str
    now: Callable[[], int]
    high_water: Callable[[], int] | None = None


def probe(backend: str, root: Path = Path("/"), nvml: str | None = None) -> Probe:
    """The probe for engines of `backend` on this machine (`root` and `nvml` stand in for its file system and its NVML
    library in tests).

    rss: resident memory of the process, for onnxruntime on the CPU. On a discrete GPU NVML's memory of this process;
    on a Jetson, where NVML has none, and where NVML does not know the process (in a container), what the device lost
    since the probe was made: of cudaMemGetInfo's free memory and on a Jetson also of the system's MemAvailable, the
    larger. Raises UserError where `backend` needs a GPU that is not there.
    """
    if backend != "tensorrt":
        return Probe("rss", lambda: resident_bytes("VmRSS"), lambda: resident_bytes("VmHWM"))
    if (root / "etc/nv_tegra_release").exists():
        return Probe("cudaMemGetInfo + MemAvailable", _lost(_device_free(), lambda: available_bytes(root)))
    process = _nvml_process(nvml)
    if process is not None:
        return Probe("nvml process memory", process)
    return Probe("cudaMemGetInfo", _lost(_device_free()))


class Recorder:
    """Samples a probe every `period_s` seconds while its `with` block runs.

    `samples` [[seconds since the start, bytes], ...] and `marks` [[seconds, what], ...] are complete after the block;
    `peak_bytes` is the largest sample, or the process's own high-water mark where that rose during the block.
    """

    def __init__(self, probe: Probe, period_s: float = 0.01) -> None:
        self.probe, self.period_s = probe, period_s
        self.samples: list[list[float]] = []
        self.marks: list[list[Any]] = []
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._start = time.perf_counter()
        self._before = self.probe.high_water() if self.probe.high_water else 0
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self.samples.sort(key=lambda sample: sample[0])
        self.peak_bytes = int(max(b for _, b in self.samples))
        after = self.probe.high_water() if self.probe.high_water else 0
        if after > self._before:
            self.peak_bytes = max(self.peak_bytes, after)

    def mark(self, what: str) -> None:
        """Note that `what` happens now, such as "load text_encoder"; the memory at this moment is sampled too."""
        self.marks.append([round(time.perf_counter() - self._start, 4), what])
        self._sample()

    def _sample(self) -> None:
        self.samples.append([round(time.perf_counter() - self._start, 4), self.probe.now()])

    def _watch(self) -> None:
        while not self._stop.wait(self.period_s):
            self._sample()


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process in bytes; the peak for both where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _lost(*free: Callable[[], int]) -> Callable[[], int]:
    """How much less is free than now, by whichever of the measures lost more."""
    before = [f() for f in free]
    return lambda: max(0, *(b - f() for b, f in zip(before, free, strict=True)))


def _device_free() -> Callable[[], int]:
    """Free memory of the first GPU, through the driver; callable from any thread."""
    from plugins.device import Device
    from plugins.errors import PluginError

    try:
        device = Device()
    except PluginError as e:
        raise UserError(str(e)) from e

    def free() -> int:
        device.make_current()
        return device.memory()[0]

    return free


def _nvml_process(library: str | None) -> Callable[[], int] | None:
    """NVML's memory of this process; None without NVML, or where that does not know the process."""
    from engines.trt import machine
    from plugins.device import Device
    from plugins.errors import PluginError

    used = machine.process_bytes(library or machine.LIBRARY)
    if used is None:
        return None
    try:
        Device()  # a process without a context is not in the list
    except PluginError as e:
        raise UserError(str(e)) from e
    return used if used() else None
