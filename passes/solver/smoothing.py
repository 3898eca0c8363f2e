"""Smoothing: per-channel factors that move outliers of the activations into the weight and its branch.

s = max|X|^alpha / max|W|^beta, inv_smooth = 1/s, over the 39 candidates of SVDQuant's own search
(DeepCompressor's configuration): (0, 0), (alpha, 0) and (alpha, 1 - alpha) for alpha = i/20, i = 1..19.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from passes.solver.problem import Problem
from plugins.svdq_linear.spec import INV_SMOOTH_MAX, INV_SMOOTH_MIN

STEPS = 20
COARSE = (4, 8, 12, 16)
#: Half-widths of the finer searches around the best so far: every i next to it is looked at in the end.
FINER = (2, 1)


@dataclass(frozen=True)
class Strength:
    """A candidate: step i of 20 along (alpha, 0) or, balanced, (alpha, 1 - alpha). Step 0: no smoothing."""

    step: int
    balanced: bool

    @property
    def alpha(self) -> float:
        return self.step / STEPS

    @property
    def beta(self) -> float:
        return (STEPS - self.step) / STEPS if self.balanced and self.step else 0.0


NONE = Strength(0, False)
GRID = (NONE, *(Strength(i, balanced) for balanced in (False, True) for i in range(1, STEPS)))


def peaks(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """max|x + shift| over the samples and max|W| over the outputs, both float32 [K]."""
    assert problem.samples is not None
    return (problem.samples + problem.recipe.act_shift).abs().amax(0), problem.weight.abs().amax(0)


def inverse_factors(strength: Strength, x_peak: torch.Tensor, w_peak: torch.Tensor, problem: Problem) -> torch.Tensor:
    """inv_smooth float32 [K], values of T within the op's bounds.

    Scaled to a geometric mean of 1, which changes no code but keeps clear of the bounds. Channels that are
    zero in the samples or in the weight are left alone.
    """
    if not strength.step:
        return torch.ones_like(x_peak)
    live = (x_peak > 0) & (w_peak > 0)
    log = strength.beta * torch.where(live, w_peak, 1.0).log() - strength.alpha * torch.where(live, x_peak, 1.0).log()
    centred = torch.where(live, log - log[live].mean(), 0.0) if bool(live.any()) else torch.zeros_like(log)
    return problem.t.rounded(centred.exp().clamp(INV_SMOOTH_MIN, INV_SMOOTH_MAX))


def smoothed_weight(weight: torch.Tensor, inv_smooth: torch.Tensor) -> torch.Tensor:
    """weight [N, K] / inv_smooth [K]; without smoothing the weight itself, for a layer may fill the memory."""
    return weight if bool((inv_smooth == 1).all()) else weight / inv_smooth


def choose(problem: Problem, score: Callable[[torch.Tensor], float]) -> tuple[Strength, torch.Tensor]:
    """The candidate of least score(inv_smooth), from coarse to fine (13 of 39 are tried); its inv_smooth [K]."""
    x_peak, w_peak = peaks(problem)
    scores: dict[Strength, float] = {}

    def best_of(candidates: list[Strength]) -> Strength:
        for candidate in candidates:
            if candidate not in scores:
                scores[candidate] = score(inverse_factors(candidate, x_peak, w_peak, problem))
        return min(scores, key=lambda c: scores[c])

    best = best_of([NONE, *(Strength(i, balanced) for balanced in (False, True) for i in COARSE)])
    for width in FINER:
        lines = (best.balanced,) if best.step else (False, True)
        near = [Strength(best.step + d, line) for line in lines for d in (-width, width)]
        best = best_of([s for s in near if 0 < s.step < STEPS])
    return best, inverse_factors(best, x_peak, w_peak, problem)
