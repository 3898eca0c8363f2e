"""Refinement: the alternation L <- SVD_r(W - Q(W - L)), LoftQ's (arXiv 2310.08659), as SVDQuant uses it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from passes.solver.element import ElementType
from passes.solver.lowrank import LowRank, project
from passes.solver.quantise import weight_error

#: A round that gains less than this part of the error is the last.
LEAST_GAIN = 1e-3

#: Rows are worked in blocks of about this many numbers, so that W - L is quantised before it leaves the cache.
BLOCK = 1 << 18


def refine(
    smoothed: torch.Tensor,
    low: LowRank,
    rounds: int,
    group: int,
    t: ElementType,
    score: Callable[[LowRank], float],
) -> tuple[LowRank, int]:
    """The best L of at most `rounds` rounds by `score` (squared output error), and in which round it was found.

    smoothed is the smoothed weight, float32 [N, K]. One round costs one pass of quantisation and two products with a
    thin matrix: each SVD starts from the last one's right singular vectors, and one step from there is enough.
    """
    best, best_score, best_round = low, score(low), 0
    error = torch.empty_like(smoothed)
    for number in range(1, rounds + 1):
        low = project(error, quantisation_error(smoothed, low, group, t, error), low.left.shape[1])
        found = score(low)
        # Errors are compared, scores are their squares.
        gained = best_score > 0 and (found / best_score) ** 0.5 <= 1 - LEAST_GAIN
        if found < best_score:
            best, best_score, best_round = low, found, number
        if not gained:
            break
    return best, best_round


def quantisation_error(
    smoothed: torch.Tensor, low: LowRank, group: int, t: ElementType, error: torch.Tensor
) -> torch.Tensor:
    """Fills error = W - Q(W - L), [N, K], and returns error · basis, [N, p]."""
    rows, channels = smoothed.shape
    step = max(16, BLOCK // channels)
    image = torch.empty(rows, low.basis.shape[1])
    product = torch.empty(min(step, rows), channels)
    transposed = low.right.T.contiguous()
    for start in range(0, rows, step):
        here = slice(start, min(start + step, rows))
        part = product[: here.stop - start]
        torch.mm(low.left[here], transposed, out=part)
        weight_error(smoothed[here], part, group, t, error[here])
        torch.mm(error[here], low.basis, out=image[here])
    return image
