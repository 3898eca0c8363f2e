"""About how long a build takes and how much memory it needs, reckoned from what it would do.

Seconds are those of one machine (docs/measurements.md): another may take half or twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from export.check import checked_bytes
from export.components import Component
from export.pipeline import weights_in_memory
from export.plan import Build
from export.quantise import workers
from passes.layers import Layer
from passes.solver import Recipe
from passes.solver.jobs import WORTH_A_POOL
from passes.solver.memory import LIBRARIES, estimated_bytes

READ_S = 1.5e-9  # per byte of the source: hashed, and looked at for NaN
EXPORT_S = 20.0  # per graph, on one core
SOLVE_S, ROUND_S = 1.2e-7, 2e-8  # per weight on one core: with a branch; rounded to nearest
WRITE_S = 7.5e-9  # per byte of a form

#: Anonymous memory of the build itself, of its graphs while they are rewritten, of a process that exports one.
BUILD_BYTES, GRAPH_BYTES, EXPORT_BYTES = 450_000_000, 450_000_000, 550_000_000
HELD = BUILD_BYTES + GRAPH_BYTES  # throughout, once graphs are there
WRITING_BYTES = HELD + 250_000_000  # beside them two solved layers and a piece of a weight


def solving_seconds(layers: Iterable[Layer], recipes: dict[str, Recipe], workers: int) -> float:
    """What solving these layers takes."""
    return sum((SOLVE_S if recipes[x.name].rank else ROUND_S) * x.n * x.k for x in layers) / workers


def exporting_bytes(build: Build, graphs: int) -> int:
    """Peak while `graphs` graphs are exported."""
    count = min(graphs, workers(build.options))
    if count < 2:
        return BUILD_BYTES + (EXPORT_BYTES // 2 if count else 0)  # in the build's own process
    limit = build.options.memory_limit
    return BUILD_BYTES + EXPORT_BYTES * max(1, min(count, limit // EXPORT_BYTES if limit else count))


def solving_bytes(build: Build, layers: Sequence[tuple[Layer, Recipe, int]]) -> int:
    """Peak while these layers, each with its number of samples, are solved; 0 where a cluster solves them."""
    cluster = build.options.cluster
    if not layers or (cluster is not None and cluster.known is not None):
        return 0
    sizes = sorted((estimated_bytes(x.n, x.k, rows, r.rank) for x, r, rows in layers), reverse=True)
    count = workers(build.options)
    if count == 1 or len(sizes) < 2 or sum(x.n * x.k for x, _, _ in layers) < WORTH_A_POOL:
        return HELD + sizes[0] - LIBRARIES  # in the build's own process
    limit, taken, number = build.options.memory_limit or math.inf, 0, 0
    for size in sizes:  # as passes/solver/pool.py fills its workers
        if number < count and (not number or taken + size <= limit):
            taken, number = taken + size, number + 1
    return HELD + taken


def checking_bytes(build: Build, compared: Iterable[Component]) -> int:
    """Peak while these components are compared with torch."""
    return HELD + max((checked_bytes(build.weights(part)) for part in compared), default=0)


def pipeline_bytes(build: Build) -> int:
    """What the weights of the 16-bit pipeline take while it draws; activations come on top."""
    return HELD + weights_in_memory(build.source, build.options.memory_limit)
