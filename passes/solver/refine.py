"""Refinement: the alternation L <- SVD_r(W - Q(W - L)), LoftQ's (arXiv 2310.08659), as SVDQuant uses it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from passes.solver.element import ElementType
from passes.solver.lowrank import LowRank, project
from passes.solver.quantise import branch_target

#: Each round goes this far from L to SVD_r(W - Q(W - L)): 1.5 takes two thirds of the rounds of 1.
STEP = 1.5

#: A round that gains less than this part of the error is the last.
LEAST_GAIN = 1e-3

#: Rows are worked in blocks of about this many numbers: W - L is quantised before it leaves the cache.
BLOCK = 1 << 18


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

    smoothed is the smoothed weight, float32 [N, K], weights [K] those of its channels in the SVD. One round
    costs one pass of quantisation and two products with a thin matrix: each SVD starts from the last one's
    right singular vectors, and one step from there is enough.
    """
    best, best_score, best_round = low, score(low), 0
    target = torch.empty_like(smoothed)
    for number in range(1, rounds + 1):
        image = fill_target(smoothed, weights, low, group, t, target)
        low = project(target, image, low.left.shape[1], weights)
        found = score(low)
        # Errors are compared, scores are their squares.
        gained = best_score > 0 and (found / best_score) ** 0.5 <= 1 - LEAST_GAIN
        if found < best_score:
            best, best_score, best_round = low, found, number
        if not gained:
            break
    return best, best_round


def fill_target(
    smoothed: torch.Tensor,
    weights: torch.Tensor,
    low: LowRank,
    group: int,
    t: ElementType,
    target: torch.Tensor,
) -> torch.Tensor:
    """Fills target [N, K] = L + STEP · (W - Q(W - L) - L); returns target · weighted basis, [N, p]."""
    rows, channels = smoothed.shape
    height = max(16, BLOCK // channels)
    basis = weights[:, None] * low.basis
    image = torch.empty(rows, basis.shape[1])
    product = torch.empty(min(height, rows), channels)
    right = low.right(weights).T.contiguous()
    for start in range(0, rows, height):
        here = slice(start, min(start + height, rows))
        part = product[: here.stop - start]
        torch.mm(low.left[here], right, out=part)
        branch_target(smoothed[here], part, STEP, group, t, target[here])
        torch.mm(target[here], basis, out=image[here])
    return image
