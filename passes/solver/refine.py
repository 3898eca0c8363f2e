"""Refinement: the alternation L <- SVD_r(W - Q(W - L)), LoftQ's (arXiv 2310.08659), as SVDQuant uses it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from passes.solver.element import ElementType
from passes.solver.lowrank import LowRank, fit
from passes.solver.quantise import branch_target

#: Each round goes this far from L to SVD_r(W - Q(W - L)): 1.5 takes two thirds of the rounds of 1.
STEP = 1.5

#: Refinement ends with the second round in succession that gains less than this part of the error. The first is
#: chance too often: scores are those of a part of the layer.
LEAST_GAIN, PATIENCE = 3e-3, 2

#: Rows are worked in blocks of about this many numbers, which stay in the cache from the first use to the last.
BLOCK, LEAST_ROWS = 1 << 18, 64


def refine(
    smoothed: torch.Tensor,
    weights: torch.Tensor,
    low: LowRank,
    rounds: int,
    group: int,
    t: ElementType,
    score: Callable[[LowRank], float],
) -> tuple[LowRank, int]:
    """The best L of at most `rounds` rounds by `score` (squared output error), and the round of it.

    smoothed is the smoothed weight, float32 [N, K], low a branch of it, weights [K] what its channels weigh
    in the output.
    """
    best, best_score, best_round, idle = low, score(low), 0, 0
    for number in range(1, rounds + 1):
        low = one_round(smoothed, weights, low, group, t)
        found = score(low)
        # Errors are compared, scores are their squares.
        gained = best_score > 0 and (found / best_score) ** 0.5 <= 1 - LEAST_GAIN
        idle = 0 if gained else idle + 1
        if found < best_score:
            best, best_score, best_round = low, found, number
        if idle == PATIENCE or not best_score:
            break
    return best, best_round


def one_round(smoothed: torch.Tensor, weights: torch.Tensor, low: LowRank, group: int, t: ElementType) -> LowRank:
    """The L after `low`; arguments as of `refine`.

    Costs one pass of quantisation and three products with a thin matrix: each SVD starts from the last one's
    right singular vectors, and one step from there is enough. W - Q(W - L) is never there as a whole.
    """
    rows, channels = smoothed.shape
    height = max(LEAST_ROWS, BLOCK // channels)
    importance = weights.square()
    directions = importance[:, None] * low.right
    across = low.core.T.contiguous()
    image, product = torch.empty(rows, directions.shape[1]), torch.zeros(directions.shape[1], channels)
    branch, target = torch.empty(2, min(height, rows), channels)
    for start in range(0, rows, height):
        here = slice(start, min(start + height, rows))
        part, wanted = branch[: here.stop - start], target[: here.stop - start]
        torch.mm(low.left[here], across, out=part)
        branch_target(smoothed[here], part, importance, STEP, group, t, wanted)
        torch.mm(wanted, directions, out=image[here])
        product.addmm_(image[here].T, wanted)
    return fit(image, product, low.rank, weights)
