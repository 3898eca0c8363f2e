"""Solving one layer: low-rank branch, smoothing, refinement, 4-bit residual (arXiv 2411.05007, section 4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from passes.solver import smoothing
from passes.solver.error import Factors, Judge, relative_error, residual
from passes.solver.lowrank import LowRank, branch_factors, branch_weights, random_basis, truncated_svd
from passes.solver.problem import Problem, check, one_thread
from passes.solver.quantise import weight_codes, weight_values
from passes.solver.recipe import Recipe
from passes.solver.refine import one_round, refine
from passes.solver.solved import SolvedLayer
from plugins.svdq_linear.spec import group_count, padded_rank

#: Power iterations of the branch's SVD, which starts from that of a part. Refinement sharpens it; without, and
#: from a random start, it has to be good by itself.
POWER, POWER_ALONE = 2, 4

#: Rounds of refinement before smoothings are compared. Unrefined branches mislead: with 16-bit activations they
#: are best at alpha 0.35 where refined ones are at 0.15, by 5 %.
TRIAL_ROUNDS = 2

#: Samples by which smoothings and rounds of refinement are compared. Rounds differ by less than chance would
#: in few samples.
TRIAL_TOKENS, ROUND_TOKENS = 128, 512

#: Output rows that are quantised at a time in the end: what is left for 4 bits is never there as a whole.
BLOCK = 256


def solve_layer(weight: np.ndarray, bias: np.ndarray | None, samples: np.ndarray | None, recipe: Recipe) -> SolvedLayer:
    """The constants of an SvdqLinear for y = x·Wᵀ + bias.

    weight [N, K], bias [N] or None, samples [S, K] of what the layer sees or None (data-free: no smoothing,
    errors are the weight's); float16, float32 or bfloat16. The same inputs give the same bits on the same
    machine, whatever the number of threads. Raises ValueError for shapes that do not fit, a rank above
    min(N, K) and values that are not finite.
    """
    with one_thread():
        problem = check(weight, bias, samples, recipe)
        part = _Part(problem)
        strength, inv_smooth = smoothing.NONE, torch.ones(problem.weight.shape[1])
        if problem.samples is not None and recipe.smooth:
            strength, inv_smooth = smoothing.choose(problem, part.score)
        solved = replace(_solved(problem, part, inv_smooth), alpha=strength.alpha, beta=strength.beta)
        return replace(solved, error=relative_error(problem, solved))


def solve_smoothed(problem: Problem, inv_smooth: torch.Tensor) -> SolvedLayer:
    """`solve_layer` with a smoothing that is given: inv_smooth [K]. Its error, alpha and beta are 0."""
    return _solved(problem, _Part(problem), inv_smooth)


def _solved(problem: Problem, part: _Part, inv_smooth: torch.Tensor) -> SolvedLayer:
    factors, rounds = _branch(problem, part, inv_smooth) if problem.recipe.rank else (None, 0)
    return replace(_assemble(problem, inv_smooth, factors), rounds=rounds)


class _Part:
    """Rows and samples of a layer that stand for it where smoothings are compared.

    right [K, >= rank], as in LowRank, is what SVDs start from: a part's is a good start for the whole.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, _ = problem.part(TRIAL_TOKENS)
        recipe, weight = problem.recipe, self.problem.weight
        self.right = torch.empty(weight.shape[1], 0)
        if recipe.rank:
            start = random_basis(weight.shape[1], recipe.rank, min(weight.shape), recipe.seed)
            self.right = truncated_svd(weight, recipe.rank, start, POWER_ALONE, problem.channel_weights).right

    def score(self, inv_smooth: torch.Tensor) -> float:
        """Squared output error of the part when solved for this smoothing, with few rounds of refinement."""
        problem, recipe, t = self.problem, self.problem.recipe, self.problem.t
        judge = Judge(problem, inv_smooth)
        if not recipe.rank:
            return judge.score(None)
        weights = branch_weights(problem.channel_weights, inv_smooth, recipe.group_size)
        low = truncated_svd(problem.weight, recipe.rank, self.right, 0, weights).times(1 / inv_smooth)
        for _ in range(min(TRIAL_ROUNDS, recipe.refine)):
            low = one_round(judge.smoothed, judge.weights, low, recipe.group_size, t)
        return judge.score(branch_factors(low.times(inv_smooth), problem.samples, t))


def _branch(problem: Problem, part: _Part, inv_smooth: torch.Tensor) -> tuple[Factors, int]:
    """The low-rank branch for this smoothing, and the number of rounds of refinement that were kept."""
    recipe, t = problem.recipe, problem.t
    weights = branch_weights(problem.channel_weights, inv_smooth, recipe.group_size)
    low = truncated_svd(problem.weight, recipe.rank, part.right, POWER if recipe.refine else POWER_ALONE, weights)
    if not recipe.refine:
        return branch_factors(low, problem.samples, t), 0
    judged, rows = problem.part(ROUND_TOKENS)
    judge = Judge(judged, inv_smooth)

    def score(low: LowRank) -> float:
        down, up = branch_factors(low.times(inv_smooth), problem.samples, t)
        return judge.score((down, up[:, rows].contiguous()))

    low = low.times(1 / inv_smooth)
    smoothed = smoothing.smoothed_weight(problem.weight, inv_smooth)
    low, rounds = refine(smoothed, judge.weights, low, recipe.refine, recipe.group_size, t, score)
    return branch_factors(low.times(inv_smooth), problem.samples, t), rounds


def _row_sums(codes: torch.Tensor, scales: torch.Tensor, inv_smooth: torch.Tensor, group: int) -> torch.Tensor:
    """The dequantised weight · inv_smooth, float64 [N]."""
    wide, blocks = inv_smooth.double(), range(0, len(codes), BLOCK)
    values = (weight_values(codes[i : i + BLOCK], scales[i : i + BLOCK], group) for i in blocks)
    return torch.cat([v.double() @ wide for v in values])


def _assemble(problem: Problem, inv_smooth: torch.Tensor, factors: Factors | None) -> SolvedLayer:
    recipe, t = problem.recipe, problem.t
    outputs, channels = problem.weight.shape
    importance = (problem.channel_weights * inv_smooth).square()
    codes = torch.empty(outputs, channels, dtype=torch.int8)
    scales = torch.empty(outputs, group_count(channels, recipe.group_size))
    for start in range(0, outputs, BLOCK):
        rows = slice(start, start + BLOCK)
        some = None if factors is None else (factors[0], factors[1][:, rows])
        left = residual(smoothing.smoothed_weight(problem.weight[rows], inv_smooth), inv_smooth, some)
        codes[rows], scales[rows] = weight_codes(left, importance, recipe.group_size, recipe.clip, t)
    if not bool(torch.isfinite(t.rounded(scales)).all()):
        raise ValueError(f"a weight scale reaches {float(scales.max())}, beyond {recipe.dtype}'s {t.largest}")
    bias = problem.bias
    if recipe.act_shift:
        # Only the quantised path sees x + shift. Its constant part is what the op itself computes from.
        bias = (bias.double() - recipe.act_shift * _row_sums(codes, scales, inv_smooth, recipe.group_size)).float()
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
