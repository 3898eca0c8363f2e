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
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from artifact.files import write_json
from engines.cost.cache import Cold
from engines.cost.pace import Pace, clock
from engines.cost.probe_graphs import build
from engines.cost.probes import (
    BETWEEN,
    CALL,
    COLD,
    COPY,
    EMPTY,
    GAP,
    HOT,
    KINDS,
    LAUNCH,
    MOVED,
    MOVERS,
    OTHERS,
    READ,
    TIMES,
    WAKE,
    WAKES,
    Class,
    Point,
    axes,
)
from engines.cost.structure import Structure

FORMAT = 4
ROUNDS = 3
RUNS = 5  # timed runs of a probe in each round; their median counts
WARM_UP = 2  # runs before those: in its second one a session takes the memory that it keeps
PAIRS = 15  # of runs whose small differences are wanted
ENOUGH_S = 0.06  # of timed runs; a longer one is not repeated in a round
ALWAYS = (LAUNCH, WAKE, GAP, CALL, READ, COPY)
OTHER_DATA = 1 << 19  # float64 numbers that are run through to put code and data out of a core's cache: 4 MiB

Progress = Callable[[int, int], None]


class Ceilings:
    """Seconds per node by key and grid point, for `threads` threads (None: one per core), at the pace at which the
    fixed work of engines/cost/pace.py takes `unit` seconds. `structure`: bytes of what onnxruntime holds of any graph;
    None where it was not measured."""

    def __init__(self, threads: int | None = None, seconds: dict[str, dict[Point, float]] | None = None) -> None:
        self.threads = threads
        self.structure: Structure | None = None
        self.unit: float | None = None  # None: the usual pace of what this object measures
        self.seconds: dict[str, dict[Point, float]] = seconds or {}
        self._taken: dict[tuple[str, Point], list[float]] = {}  # in units of the pace, a value a round
        self._pace: Pace | None = None

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
            structure = kept["structure"] and Structure(**kept["structure"])
            unit = float(kept["unit"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(threads)
        known = cls(threads, {k: v for k, v in found.items() if set(v) == set(grid(k))})
        known.structure, known.unit = structure, unit
        return known

    def save(self) -> None:
        """Keep them for the next prediction on this machine."""
        target = path(self.threads)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = {k: {",".join(map(str, p)): s for p, s in v.items()} for k, v in self.seconds.items()}
        structure = self.structure and self.structure.to_json()
        unit = self.unit or self.pace.usual
        write_json(
            target, {"format": FORMAT, "machine": identity(self.threads), "unit": unit, "seconds": text,
                     "structure": structure},
        )  # fmt: skip

    @property
    def pace(self) -> Pace:
        """Of this machine with these threads."""
        if self._pace is None:
            self._pace = Pace(self.threads)
        return self._pace

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not measured."""
        return sorted({k for k in (*keys, *ALWAYS) if k not in self.seconds})

    def measure(self, keys: Iterable[str], rounds: int = ROUNDS, progress: Progress | None = None) -> None:
        """Measure the keys' grids, every point once a round, so that a disturbance hits few of them for good.

        The median of all rounds is kept, those of earlier calls included, at the pace that the machine usually had
        while all of them were taken, or at that of the times it already held.
        """
        points = [(k, p) for k in sorted(set(keys) - set(ALWAYS)) for p in grid(k)]
        for i in range(rounds):
            empty = self._timed(EMPTY, (16,), 0)[0]
            shape = (self._timed(EMPTY, (16,), 16)[0] - empty) / 16
            for state in (HOT, COLD):
                self.keep(CALL, state, self.pace.relative(partial(_calling, self.threads, state == COLD)))
            self._keep_launches()
            self._keep_wakes()
            moving = [(key, (size,)) for key, size in itertools.product((READ, COPY), MOVED)]
            for j, (key, point) in enumerate([*moving, *points]):
                taken, count, shapes = self._timed(key, point)
                self.keep(key, point, (taken - empty - shapes * shape) / count)
                if progress:
                    progress(i * (len(moving) + len(points)) + j + 1, rounds * (len(moving) + len(points)))
        self.settle()

    def _timed(self, key: str, point: Point, copies: int | None = None) -> tuple[float, int, int]:
        """The median time of a run of the probe in units of the pace, its number of nodes, and those of Shape beside
        them."""
        session, feeds, count, shapes = _session(key, point, self.threads, copies)
        return self.pace.relative(lambda: _seconds(session, feeds, self.threads)), count, shapes

    def _beside(self, key: str, without: str, point: Point) -> tuple[float, float]:
        """The median time that the one probe takes more than the other, run in turn, and that of the other."""
        mixed, feeds = _session(key, point, self.threads, None)[:2]
        alone = _session(without, point, self.threads, None)[0]
        more, other = self.pace.relative(lambda: _in_turn(mixed, alone, feeds, self.threads))
        return more, other

    def _keep_launches(self) -> None:
        """What nodes cost beyond their elements, and how much more where others run between them.

        Both the tiny nodes and those that move data suffer from each other: either half of them half of it.
        """
        tiny = {p: self._beside(LAUNCH, MOVERS, p)[0] / (TIMES * KINDS) for p in grid(LAUNCH)}
        for point, each in tiny.items():
            self.keep(LAUNCH, point, (tiny[(BETWEEN[0],)] + each) / 2)

    def _keep_wakes(self) -> None:
        """What a product and the others around it lose by each other, and how long the others are."""
        found = {p: self._beside(WAKE, GAP, p) for p in grid(WAKE)}
        for point, (product, others) in found.items():
            self.keep(WAKE, point, (product - found[(OTHERS[0],)][0]) / WAKES)
            self.keep(GAP, point, others / WAKES)

    def keep(self, key: str, point: Point, relative: float) -> None:
        """Another value of a round, in units of the pace."""
        self._taken.setdefault((key, point), []).append(float(relative))
        self._settle(key, point, self.unit or self.pace.usual)

    def settle(self) -> None:
        """Tell all that was taken in seconds, at the pace that is usual by now."""
        unit = self.unit or self.pace.usual
        for key, point in self._taken:
            self._settle(key, point, unit)

    def _settle(self, key: str, point: Point, unit: float) -> None:
        # Not the least of all rounds: no model has the luck of all of its nodes' best moments at once.
        self.seconds.setdefault(key, {})[point] = max(statistics.median(self._taken[key, point]) * unit, 1e-8)

    def time(self, work: Class) -> float:
        """Seconds of a node with all at hand that it needs.

        Between grid points linear in logarithms; beyond the largest in proportion, below the smallest as the smallest.
        A node of several units is launched once. Raises KeyError where the key is not measured.
        """
        known, sizes = self.seconds[work.key], axes(work.key)
        inside = [min(max(p, axis[0]), axis[-1]) for p, axis in zip(work.point, sizes, strict=True)]
        beyond = math.prod(max(1.0, p / axis[-1]) for p, axis in zip(work.point, sizes, strict=True))
        if "product" not in work.key and "Conv" not in work.key:  # later axes only say how the first one is split
            beyond = max(1.0, work.point[0] / sizes[0][-1])
        least = min(known.values())  # of a node beside its like, whose code is at hand
        beside = math.exp(_between(known, sizes, inside)) * beyond - least
        return max(self.launch(0), least) + work.times * max(beside, 0.0)

    def launch(self, moved: int) -> float:
        """Seconds that a node takes before its first element where so many bytes were moved since its kind ran last."""
        known, each = self.seconds[LAUNCH], min(moved // KINDS, BETWEEN[-1])
        least, times = 0.0, []
        for size in BETWEEN:
            least = max(least, known[(size,)])  # never cheaper for having been forgotten
            times.append(least)
        return float(np.interp(math.log1p(each), [math.log1p(b) for b in BETWEEN], times))

    def wake(self, gap: float) -> float:
        """Seconds that a product and `gap` seconds of other nodes before it take longer than each beside its like."""
        most, times = 0.0, []
        for count in OTHERS:
            most = max(most, self.seconds[WAKE][(count,)])
            times.append(most)
        return float(np.interp(gap, [self.seconds[GAP][(count,)] for count in OTHERS], times))

    def more(self, cold: Cold, working_set: int) -> float:
        """Seconds on top of `time` for a node whose code or data are outside the core's caches.

        Data come and go at the speed of as many bytes as the `working_set` has, instead of that within the cache.
        """
        read, both = (self._farther(key, working_set) for key in (READ, COPY))
        started = self.launch(cold.moved) - self.launch(0)
        return started + cold.read * read + cold.written * max(both - read, 0.0)

    def _farther(self, key: str, size: int) -> float:
        """Seconds a byte that it takes longer than within the cache."""
        known = self.seconds[key]
        near = min(known[(n,)] / n for n in MOVED)
        size = min(max(size, MOVED[0]), MOVED[-1])
        return max(math.exp(_between(known, (MOVED,), [size])) / size - near, 0.0)


def _between(known: dict[Point, float], sizes: tuple[Point, ...], at: Sequence[float]) -> float:
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


def _calling(threads: int | None, evict: bool) -> float:
    """The median time of a call of a graph without a node."""
    from engines.session import Session

    model, feeds, _, _ = build(EMPTY, (16,), 0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.onnx"
        path.write_bytes(model)
        session = Session(path, "empty", threads).open()
        return timed(lambda: session.run(feeds), threads, evict)


def _in_turn(mixed: Any, alone: Any, feeds: dict[str, np.ndarray], threads: int | None) -> tuple[float, float]:
    """The median seconds by which the first session takes longer than the second, and those of the second."""
    shared = {i.name: feeds[i.name] for i in alone.get_inputs()}
    now, more, other = clock(threads), list[float](), list[float]()
    for _ in range(WARM_UP + PAIRS):
        start = now()
        alone.run(None, shared)
        between = now()
        mixed.run(None, feeds)
        other.append(between - start)
        more.append(now() - between - other[-1])
    return statistics.median(more[WARM_UP:]), statistics.median(other[WARM_UP:])


def _seconds(session: Any, feeds: dict[str, np.ndarray], threads: int | None) -> float:
    """The median time of a run of the probe."""
    return timed(lambda: session.run(None, feeds), threads)


def timed(run: Callable[[], object], threads: int | None, evict: bool = False) -> float:
    """The median of some runs after those that warm up; with `evict`, other data are used before each."""
    now, taken = clock(threads), list[float]()
    other = np.zeros(OTHER_DATA) if evict else None
    for _ in range(WARM_UP):
        run()
    for _ in range(RUNS):
        if other is not None:
            other += 1.0
        start = now()
        run()
        taken.append(now() - start)
        if sum(taken) > ENOUGH_S:
            break
    return statistics.median(taken)


def _session(key: str, point: Point, threads: int | None, copies: int | None) -> Any:
    import onnxruntime as ort

    model, feeds, count, shapes = build(key, point, copies)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), feeds, count, shapes
