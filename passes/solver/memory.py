"""How much memory solving a layer takes."""

from __future__ import annotations

from passes.solver.lowrank import OVERSAMPLING
from passes.solver.problem import part_rows

#: A worker before it has loaded anything: torch, numba and what they allocate.
LIBRARIES = 210_000_000

#: Output rows of a data-free layer whose error is taken at a time, in two float32 copies.
ROWS = 1024


def estimated_bytes(outputs: int, channels: int, samples: int, rank: int) -> int:
    """Peak anonymous memory of a process that solves a layer [N, K] with S samples (0: data-free), libraries included.

    Counts what is there at once: the weight as it was read (16 bits; not there where one mapped file holds it), in
    float32 and, with samples, smoothed; codes; copies of the part that candidates are compared on; samples; thin
    matrices of the branch. 2 to 22 % above what `python -m bench.solve_memory` measured on layers of 9 to 47 million
    weights (docs/measurements.md).
    """
    weights, part = outputs * channels, 4 * part_rows(outputs, rank) * channels
    thin = 6 * 4 * (rank + OVERSAMPLING) * outputs
    if samples:
        # float32 twice, the samples as 16 bits, in float32, their part and what they become when quantised.
        return LIBRARIES + (2 + 8) * weights + 14 * samples * channels + 10 * part + thin
    return LIBRARIES + (2 + 4 + 1) * weights + 8 * min(ROWS, outputs) * channels + 4 * part + thin
