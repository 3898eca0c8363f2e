"""Smoothing: per-channel factors that move outliers of the activations into the weight, where the branch absorbs them.

s = max|X|^alpha / max|W|^beta, inv_smooth = 1/s, over the 39 candidates of SVDQuant's own search (DeepCompressor's
configuration): (0, 0), (alpha, 0) and (alpha, 1 - alpha) for alpha = i/20, i = 1..19.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from passes.solver.error import Judge
from passes.solver.lowrank import LowRank, branch_factors, random_basis, truncated_svd
from passes.solver.problem import Problem
from plugins.svdq_linear.spec import INV_SMOOTH_MAX, INV_SMOOTH_MIN

STEPS = 20
COARSE = (4, 8, 12, 16)
#: Half-widths of the finer searches around the best so far: every i next to it is looked at in the end.
FINER = (2, 1)

#: Candidates are compared on this many output rows and tokens, with one power iteration.
ROWS, TOKENS, POWER = 512, 128, 1

#: The branch of a candidate is that of the whole layer, found from a sketch of this many rows. The SVD of the few
#: rows compared would give them a branch of their own, better than any that they get in the end.
SKETCH = 1024


@dataclass(frozen=True)
class Strength:
    """One candidate: step i of 20 along (alpha, 0) or, balanced, along (alpha, 1 - alpha). Step 0 is no smoothing."""

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


def inverse_factors(
    strength: Strength, x_peak: torch.Tensor, w_peak: torch.Tensor, problem: Problem
) -> torch.Tensor:
    """inv_smooth float32 [K], values of T within the op's bounds.

    Scaled to a geometric mean of 1, which changes no code but keeps clear of the bounds. Channels that are zero in
    the samples or in the weight are left alone.
    """
    if not strength.step:
        return torch.ones_like(x_peak)
    live = (x_peak > 0) & (w_peak > 0)
    log = (
        strength.beta * torch.where(live, w_peak, 1.0).log()
        - strength.alpha * torch.where(live, x_peak, 1.0).log()
    )
    centred = torch.where(live, log - log[live].mean(), 0.0) if bool(live.any()) else torch.zeros_like(log)
    return problem.t.rounded(centred.exp().clamp(INV_SMOOTH_MIN, INV_SMOOTH_MAX))


def choose(problem: Problem) -> tuple[Strength, torch.Tensor]:
    """The candidate with the least output error, from coarse to fine (13 of the 39 are tried), and its inv_smooth [K].

    Without samples, or with smoothing off in the recipe: no smoothing.
    """
    if problem.samples is None or not problem.recipe.smooth:
        return NONE, torch.ones(problem.weight.shape[1])
    x_peak, w_peak = peaks(problem)
    part = problem.part(ROWS, TOKENS)
    sketch = sketched(problem.weight, problem.recipe.seed)
    scores: dict[Strength, float] = {}

    def best_of(candidates: list[Strength]) -> Strength:
        for candidate in candidates:
            if candidate not in scores:
                scores[candidate] = score(part, sketch, inverse_factors(candidate, x_peak, w_peak, problem))
        return min(scores, key=lambda c: scores[c])

    best = best_of([NONE, *(Strength(i, balanced) for balanced in (False, True) for i in COARSE)])
    for width in FINER:
        lines = (best.balanced,) if best.step else (False, True)
        near = [Strength(best.step + d, line) for line in lines for d in (-width, width)]
        best = best_of([s for s in near if 0 < s.step < STEPS])
    return best, inverse_factors(best, x_peak, w_peak, problem)


def sketched(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """At most SKETCH random sums of the rows of weight [N, K], each row in one of them with a random sign.

    Sᵀ·S approximates Wᵀ·W (a count sketch; Clarkson and Woodruff 2013), so the right singular vectors are nearly W's.
    """
    rows = weight.shape[0]
    if rows <= SKETCH:
        return weight
    signs = torch.randint(0, 2, (rows, 1), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    sketch = torch.zeros(SKETCH, weight.shape[1])
    for start in range(0, rows, SKETCH):
        block = weight[start : start + SKETCH]
        sketch[: len(block)].addcmul_(block, signs[start : start + SKETCH])
    return sketch


def score(part: Problem, sketch: torch.Tensor, inv_smooth: torch.Tensor) -> float:
    """Output error (squared) of a part of a layer with this smoothing, 4-bit weights and the layer's branch."""
    judge = Judge(part, inv_smooth)
    if not part.recipe.rank:
        return judge.score(None)
    smoothed = sketch / inv_smooth
    basis = random_basis(sketch.shape[1], part.recipe.rank, min(sketch.shape), part.recipe.seed)
    right = truncated_svd(smoothed, part.recipe.rank, basis, POWER).right
    low = LowRank(left=judge.smoothed @ right, right=right, basis=right)
    return judge.score(branch_factors(low, inv_smooth, part.samples, part.t))
