"""What this CPU can do, measured by micro-benchmarks (engines/cost/probes.py) and kept per machine.

A time is looked up between grid points, linearly in the logarithms of time and sizes. One file per CPU model,
onnxruntime version and number of threads lies in ~/.cache/svdq-edge (or $XDG_CACHE_HOME); it grows with the kinds of
nodes that were asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from artifact.files import write_json
from engines.cost.cache import Cold
from engines.cost.probes import CALL, COLD, COPIED, COPY, EMPTY, HOT, LAUNCH, Class, Point, axes, build

FORMAT = 1
ROUNDS = 3
RUNS = 5  # timed runs of a probe in each round, after one that is not timed; their median counts
ENOUGH_S = 0.06  # of timed runs; a longer one is not repeated in a round
ALWAYS = (LAUNCH, CALL, COPY)
_OTHER_DATA = 1 << 19  # float64 numbers that are run through to put code and data out of a core's cache: 4 MiB

Progress = Callable[[int, int], None]


class Ceilings:
    """Seconds per node by key and grid point, for `threads` threads (None: one per core)."""

    def __init__(self, threads: int | None = None, seconds: dict[str, dict[Point, float]] | None = None) -> None:
        self.threads = threads
        self.seconds: dict[str, dict[Point, float]] = seconds or {}
        self._taken: dict[tuple[str, Point], list[float]] = {}  # what was measured by this object, a value a round

    @classmethod
    def cached(cls, threads: int | None = None) -> Ceilings:
        """What is already known of this machine; empty where nothing was measured yet or the file is of another one."""
        try:
            kept = json.loads(path(threads).read_text(encoding="utf-8"))
            if kept["format"] != FORMAT or kept["machine"] != identity(threads):
                return cls(threads)
            found = {
                key: {tuple(map(int, p.split(","))): float(s) for p, s in points.items()}
                for key, points in kept["seconds"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(threads)
        return cls(threads, {k: v for k, v in found.items() if set(v) == set(grid(k))})

    def save(self) -> None:
        """Keep them for the next prediction on this machine."""
        target = path(self.threads)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = {k: {",".join(map(str, p)): s for p, s in v.items()} for k, v in self.seconds.items()}
        write_json(target, {"format": FORMAT, "machine": identity(self.threads), "seconds": text})

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not measured."""
        return sorted({k for k in (*keys, *ALWAYS) if k not in self.seconds})

    def measure(self, keys: Iterable[str], rounds: int = ROUNDS, progress: Progress | None = None) -> None:
        """Measure the keys' grids, every point once a round, so that a disturbance hits few of them for good.

        The median of all rounds is kept, those of earlier calls included. The least would be that of a lucky moment, at
        every point of another one: no model has that luck in all of its nodes at once. One thread is timed by its own
        CPU time, which other processes on the machine do not lengthen; several by the clock.
        """
        points = [(k, p) for k in sorted(set(keys) - set(ALWAYS)) for p in grid(k)]
        for i in range(rounds):
            empty = {p: _seconds(EMPTY, (16,), self.threads, 0, evict=p == COLD)[0] for p in (HOT, COLD)}
            for state in (HOT, COLD):
                taken, count = _seconds(LAUNCH, state, self.threads, evict=state == COLD)
                self._keep(LAUNCH, state, (taken - empty[state]) / count)
                self._keep(CALL, state, empty[state])
            for size in COPIED:
                self._keep(COPY, (size,), _copying(size, self.threads))
            for j, (key, point) in enumerate(points):
                taken, count = _seconds(key, point, self.threads)
                self._keep(key, point, (taken - empty[HOT]) / count)
                if progress:
                    progress(i * len(points) + j + 1, rounds * len(points))

    def _keep(self, key: str, point: Point, seconds: float) -> None:
        taken = self._taken.setdefault((key, point), [])
        taken.append(max(seconds, 1e-8))
        self.seconds.setdefault(key, {})[point] = statistics.median(taken)

    def time(self, work: Class) -> float:
        """Seconds of a node. Raises KeyError where its key is not measured.

        Between grid points linear in logarithms; beyond the largest in proportion, below the smallest as the smallest.
        A node of several units is launched once; a launch costs what it does in a chain of nodes of many kinds.
        """
        known, sizes = self.seconds[work.key], axes(work.key)
        inside = [min(max(p, axis[0]), axis[-1]) for p, axis in zip(work.point, sizes, strict=True)]
        beyond = math.prod(max(1.0, p / axis[-1]) for p, axis in zip(work.point, sizes, strict=True))
        if "product" not in work.key and "Conv" not in work.key:  # later axes only say how the first one is split
            beyond = max(1.0, work.point[0] / sizes[0][-1])
        least = min(known.values())  # of a node beside its like, whose code is at hand
        beside = math.exp(_between(known, sizes, inside)) * beyond - least
        return max(self.seconds[LAUNCH][HOT], least) + work.times * max(beside, 0.0)

    def more(self, cold: Cold, working_set: int) -> float:
        """Seconds on top of `time` for a node whose code or data are outside the core's cache.

        Data come at the speed of a copy as large as the `working_set`, in bytes, instead of one that fits the cache.
        """
        launch, copies = self.seconds[LAUNCH], self.seconds[COPY]
        near = min(copies[(size,)] / size for size in COPIED)
        size = min(max(working_set, COPIED[0]), COPIED[-1])
        far = math.exp(_between(copies, (COPIED,), [size])) / size
        code = max(launch[COLD] - launch[HOT], 0.0) if cold.code else 0.0
        return code + cold.nbytes * max(far - near, 0.0) / 2  # a copy reads and writes


def _between(known: dict[Point, float], sizes: tuple[Point, ...], at: list[int]) -> float:
    """log of the time at `at`, by linear interpolation in logarithms over the grid cell around it."""
    edges = []
    for value, axis in zip(at, sizes, strict=True):
        low = max((a for a in axis if a <= value), default=axis[0])
        high = min((a for a in axis if a >= value), default=axis[-1])
        share = 0.0 if low == high else math.log(value / low) / math.log(high / low)
        edges.append(((low, 1 - share), (high, share)))
    total = 0.0
    for corner in itertools.product(*edges):
        weight = math.prod(w for _, w in corner)
        if weight:
            total += weight * math.log(known[tuple(size for size, _ in corner)])
    return total


def grid(key: str) -> list[Point]:
    """All points at which a key is measured."""
    return list(itertools.product(*axes(key)))


def identity(threads: int | None) -> dict[str, Any]:
    """What the times hold for."""
    import onnxruntime

    from engines.machine import describe

    here = describe()
    return {"cpu": here["cpu"], "cores": here["cores"], "onnxruntime": onnxruntime.__version__, "threads": threads}


def path(threads: int | None) -> Path:
    """The file of this machine."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(json.dumps(identity(threads), sort_keys=True).encode()).hexdigest()[:16]
    return root / "svdq-edge" / f"ceilings-{name}.json"


def _copying(size: int, threads: int | None) -> float:
    """The median time of a copy of so many bytes."""
    source = np.zeros(size // 8)
    target = np.zeros_like(source)
    clock, taken = _clock(threads), list[float]()
    np.copyto(target, source)
    for _ in range(RUNS):
        start = clock()
        np.copyto(target, source)
        taken.append(clock() - start)
    return statistics.median(taken)


def _clock(threads: int | None) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.perf_counter


def _seconds(
    key: str, point: Point, threads: int | None, copies: int | None = None, evict: bool = False
) -> tuple[float, int]:
    """The median time of a run of the probe, and its number of nodes; with `evict`, other data are used before it."""
    session, feeds, count = _session(key, point, threads, copies)
    clock, taken = _clock(threads), list[float]()
    other = np.zeros(_OTHER_DATA) if evict else None
    session.run(None, feeds)
    for _ in range(RUNS):
        if other is not None:
            other += 1.0
        start = clock()
        session.run(None, feeds)
        taken.append(clock() - start)
        if sum(taken) > ENOUGH_S:
            break
    return statistics.median(taken), count


def _session(key: str, point: Point, threads: int | None, copies: int | None) -> Any:
    import onnxruntime as ort

    model, feeds, count = build(key, point, copies)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), feeds, count
