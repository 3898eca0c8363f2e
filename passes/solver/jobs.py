"""Solving many layers: in parallel, largest first, each stored as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from artifact.free import available_bytes
from passes.solver import cluster as clusters
from passes.solver.cluster import Cluster
from passes.solver.key import solve_key
from passes.solver.layer import solve_layer
from passes.solver.memory import estimated_bytes
from passes.solver.pool import each
from passes.solver.recipe import Recipe
from passes.solver.solved import SolvedLayer

Inputs = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]

#: Below this many weights in all, starting processes (each imports torch) takes longer than they save.
WORTH_A_POOL = 1 << 25


class Store(Protocol):
    """Where solved layers live; safe for several processes at once, entries appear whole or not at all."""

    @property
    def root(self) -> Path: ...

    def get_arrays(self, key: str) -> tuple[dict[str, np.ndarray], dict[str, str]] | None: ...

    def put_arrays(self, key: str, arrays: dict[str, np.ndarray], meta: dict[str, str]) -> None: ...

    def put_bytes(self, key: str, data: bytes) -> None: ...


@dataclass(frozen=True)
class Job:
    """One layer to solve. load, picklable, returns (weight [N, K], bias [N] or None, samples [S, K] or None).

    shape (N, K, at most S; S 0: none) is what jobs are ordered by and memory is reckoned with; unknown, the layer is
    loaded once more to see it. files: what `load` reads, which machines of a cluster have to see. alias: a second key,
    under which the store then has the first one.
    """

    name: str
    load: Callable[[], Inputs]
    recipe: Recipe
    shape: tuple[int, int, int] | None = None
    files: tuple[Path, ...] = ()
    alias: str | None = None

    def __str__(self) -> str:
        return f"layer {self.name}"


def solve_all(
    jobs: Sequence[Job], store: Store, workers: int, progress: Callable[[str], None] | None = None
) -> dict[str, SolvedLayer]:
    """Solve what the store does not hold yet and return every job's layer by its name, in the jobs' order.

    store and jobs must be picklable. Each worker runs one thread; results do not depend on their number.
    Holds all results at once: a caller with more layers than memory uses `solve_into`. Raises as it does.
    """
    solved = {}
    for name, key in solve_into(jobs, store, workers, progress).items():
        entry = store.get_arrays(key)
        if entry is None:
            raise OSError(f"layer {name} was stored as {key} but is not there any more; is the store's disk full?")
        solved[name] = SolvedLayer.from_arrays(*entry)
    return solved


def solve_into(
    jobs: Sequence[Job],
    store: Store,
    workers: int,
    progress: Callable[[str], None] | None = None,
    max_memory: int | None = None,
    cluster: Cluster | None = None,
) -> dict[str, str]:
    """Like `solve_all`, but leaves the layers in the store and returns their keys by name: bounded memory.

    progress gets one line per finished layer. A killed run loses the layers in flight only. max_memory, in bytes, is
    what the workers may take together; without, as much as is available now. cluster: solve on a Ray cluster instead,
    whose machines have memory and CPUs of their own; one that starts here has `workers` CPUs and max_memory. Raises
    ValueError for two jobs of one name and for a layer that cannot be solved, naming it, UserError for a cluster that
    cannot do it, and WorkerDied for a killed worker.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    names = [job.name for job in jobs]
    if len(set(names)) != len(names):
        raise ValueError(f"several jobs are named {next(n for n in names if names.count(n) > 1)!r}")
    shapes = {job.name: job.shape or _shape(job.load()) for job in jobs}
    weights = {name: outputs * channels for name, (outputs, channels, _) in shapes.items()}
    # Largest first: a large layer begun last would keep one worker busy while the others idle. Ties by name.
    ordered = sorted(jobs, key=lambda job: (-weights[job.name], job.name))
    work = partial(_solve, store=store)

    def memory(job: Job) -> int:
        return estimated_bytes(*shapes[job.name], job.recipe.rank)

    finished: Iterator[tuple[Job, tuple[str, str]]]
    if cluster is not None:
        files = sorted({file for job in jobs for file in job.files})
        finished = clusters.each(work, ordered, cluster, workers, memory, max_memory, store.root, files)
    elif workers == 1 or len(jobs) < 2 or sum(weights.values()) < WORTH_A_POOL:
        finished = ((job, work(job)) for job in ordered)
    else:
        limit = available_bytes() if max_memory is None else max_memory
        finished = each(work, ordered, workers, __name__, memory, limit)
    keys: dict[str, str] = {}
    for job, (key, note) in finished:
        keys[job.name] = key
        if progress is not None:
            progress(f"[{len(keys)}/{len(jobs)}] {job.name}: {note}")
    return {name: keys[name] for name in names}


def _shape(inputs: Inputs) -> tuple[int, int, int]:
    weight, _, samples = inputs
    outputs = len(weight) if weight.ndim else 1  # what is no matrix is refused where it is solved, by name
    return outputs, weight.size // max(outputs, 1), 0 if samples is None else len(samples)


def _solve(job: Job, store: Store) -> tuple[str, str]:
    """Solve one layer unless the store has it; returns its key and a line for people."""
    began = time.perf_counter()
    try:
        weight, bias, samples = job.load()
        key = solve_key(weight, bias, samples, job.recipe)
        if job.alias is not None:
            store.put_bytes(job.alias, key.encode())
        entry = store.get_arrays(key)
        if entry is not None:
            return key, f"error {float(entry[1]['error']):.4f}, from the store"
        solved = solve_layer(weight, bias, samples, job.recipe)
    except ValueError as error:
        raise ValueError(f"layer {job.name}: {error}") from error
    store.put_arrays(key, solved.arrays(), solved.meta())
    return key, f"error {solved.error:.4f}, {time.perf_counter() - began:.1f} s"
