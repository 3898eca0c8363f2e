"""Solving one layer: low-rank branch, smoothing, refinement, 4-bit residual (arXiv 2411.05007, section 4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from passes.solver import smoothing
from passes.solver.error import Factors, Judge, relative_error
from passes.solver.lowrank import LowRank, branch_factors, channel_weights, random_basis, truncated_svd
from passes.solver.problem import Problem, check, one_thread
from passes.solver.quantise import weight_codes, weight_values
from passes.solver.recipe import Recipe
from passes.solver.refine import refine
from passes.solver.solved import SolvedLayer
from plugins.svdq_linear.spec import padded_rank

#: Power iterations of the first SVD. Refinement sharpens it; without, it has to be good by itself.
POWER, POWER_ALONE = 2, 4


def solve_layer(weight: np.ndarray, bias: np.ndarray | None, samples: np.ndarray | None, recipe: Recipe) -> SolvedLayer:
    """The constants of an SvdqLinear for y = x·Wᵀ + bias.

    weight [N, K], bias [N] or None, samples [S, K] of what the layer sees or None (data-free: no smoothing,
    errors are the weight's); float16, float32 or bfloat16. The same inputs give the same bits on the same
    machine, whatever the number of threads. Raises ValueError for shapes that do not fit, a rank above
    min(N, K) and values that are not finite.
    """
    with one_thread():
        problem = check(weight, bias, samples, recipe)
        branch = _Branch(problem) if recipe.rank else None
        strength, inv_smooth = smoothing.choose(problem, branch.factors() if branch else None)
        rounds = branch.refine(inv_smooth) if branch else 0
        factors = branch.factors() if branch else None
        residual = Judge(replace(problem, samples=None), inv_smooth).residual(factors)
        solved = _assemble(problem, inv_smooth, factors, residual)
        solved = replace(solved, alpha=strength.alpha, beta=strength.beta, rounds=rounds)
        return replace(solved, error=relative_error(problem, solved))


class _Branch:
    """The low-rank branch of a layer: first that of the weight, then refined for one smoothing."""

    def __init__(self, problem: Problem) -> None:
        recipe, (outputs, channels) = problem.recipe, problem.weight.shape
        self.problem, self.weights = problem, channel_weights(problem.samples, channels)
        basis = random_basis(channels, recipe.rank, min(outputs, channels), recipe.seed)
        power = POWER if recipe.refine else POWER_ALONE
        self.low = truncated_svd(problem.weight, recipe.rank, basis, power, self.weights)

    def factors(self) -> Factors:
        return branch_factors(self.low, self.weights, self.problem.samples, self.problem.t)

    def refine(self, inv_smooth: torch.Tensor) -> int:
        """Refine for this smoothing; returns the number of rounds that were kept."""
        problem, recipe = self.problem, self.problem.recipe
        if not recipe.refine:
            return 0
        part, rows = problem.part()
        judge = Judge(part, inv_smooth)

        def score(candidate: LowRank) -> float:
            down, up = branch_factors(candidate, self.weights, problem.samples, problem.t)
            return judge.score((down, up[:, rows].contiguous()))

        smoothed, weights = problem.weight / inv_smooth, self.weights * inv_smooth
        self.low, rounds = refine(smoothed, weights, self.low, recipe.refine, recipe.group_size, problem.t, score)
        return rounds


def _assemble(
    problem: Problem,
    inv_smooth: torch.Tensor,
    factors: Factors | None,
    residual: torch.Tensor,
) -> SolvedLayer:
    recipe, t = problem.recipe, problem.t
    outputs, channels = problem.weight.shape
    codes, scales = weight_codes(residual, recipe.group_size, recipe.clip, t)
    if not bool(torch.isfinite(t.rounded(scales)).all()):
        raise ValueError(f"a weight scale reaches {float(scales.max())}, beyond {recipe.dtype}'s {t.largest}")
    bias = problem.bias
    if recipe.act_shift:
        # Only the quantised path sees x + shift. Its constant part is what the op itself computes from.
        offset = weight_values(codes, scales, recipe.group_size).double() @ inv_smooth.double()
        bias = (bias.double() - recipe.act_shift * offset).float()
    down = torch.zeros(channels, padded_rank(recipe.rank))
    up = torch.zeros(padded_rank(recipe.rank), outputs)
    if factors is not None:
        down[:, : recipe.rank], up[: recipe.rank] = factors
    return SolvedLayer(
        inv_smooth=t.array(inv_smooth),
        down=t.array(down),
        up=t.array(up),
        qweight=codes.numpy(),
        wscale=t.array(scales),
        bias=t.array(bias),
        error=0.0,
        alpha=0.0,
        beta=0.0,
        rounds=0,
    )
