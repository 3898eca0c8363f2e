"""The output error: what every choice of the solver is judged by."""

from __future__ import annotations

import numpy as np
import torch

from passes.solver.problem import Problem, check, one_thread
from passes.solver.quantise import activation_values, round_weight, weight_values
from passes.solver.recipe import Recipe
from passes.solver.smoothing import smoothed_weight
from passes.solver.solved import SolvedLayer

Factors = tuple[torch.Tensor, torch.Tensor]

#: Output rows that are compared at a time: [samples, BLOCK] stays small, whatever the layer.
BLOCK = 1024


class Judge:
    """Scores factors for one smoothing of one (part of a) layer; lower is better.

    The score is ||X·Wᵀ - y||², y as the op computes it short of the last rounding to T (the bias cancels);
    without samples, ||W - Ŵ||² of the weights.
    """

    def __init__(self, problem: Problem, inv_smooth: torch.Tensor) -> None:
        self.problem, self.inv_smooth = problem, inv_smooth
        self.smoothed = smoothed_weight(problem.weight, inv_smooth)
        self.weights = problem.channel_weights * inv_smooth
        self.importance = self.weights.square()
        recipe, samples = problem.recipe, problem.samples
        if samples is not None:
            self.acts = (
                activation_values(samples, inv_smooth, recipe.variant(), problem.t) - recipe.act_shift * inv_smooth
            )

    def score(self, factors: Factors | None) -> float:
        recipe, samples, t = self.problem.recipe, self.problem.samples, self.problem.t
        values = residual(self.smoothed, self.inv_smooth, factors)
        if samples is None:
            exact = values.clone()
            round_weight(values, self.importance, recipe.group_size, recipe.clip, t)
            return squares(exact.sub_(values).mul_(self.inv_smooth), scratch=values)
        round_weight(values, self.importance, recipe.group_size, recipe.clip, t)
        y = self.acts @ values.T
        if factors is not None:
            down, up = factors
            y.addmm_(t.rounded(samples @ down), up)
        found = squares(self.problem.wanted - y)
        return found if found == found else float("inf")


def residual(smoothed: torch.Tensor, inv_smooth: torch.Tensor, factors: Factors | None) -> torch.Tensor:
    """What the rounded factors leave of the smoothed weight for 4 bits, [N, K], a new tensor."""
    if factors is None:
        return smoothed.clone()
    down, up = factors
    return torch.addmm(smoothed, up.T, (down / inv_smooth[:, None]).T, alpha=-1)


def output_error(
    solved: SolvedLayer,
    weight: np.ndarray,
    bias: np.ndarray | None,
    samples: np.ndarray | None,
    recipe: Recipe,
) -> float:
    """||y - y_ref|| / ||y_ref|| (Frobenius) of a solved layer: y as the op computes it, y_ref = X·Wᵀ + b.

    weight [N, K], bias [N] and samples [S, K] as for solve_layer; without samples, the relative error of the
    weight.
    """
    with one_thread():
        return relative_error(check(weight, bias, samples, recipe), solved)


def relative_error(problem: Problem, solved: SolvedLayer) -> float:
    """`output_error` of a checked problem."""
    recipe, t, x = problem.recipe, problem.t, problem.samples
    inv_smooth, down, up, scales, bias = (
        torch.from_numpy(a.astype(np.float32)).clone()
        for a in (solved.inv_smooth, solved.down, solved.up, solved.wscale, solved.bias)
    )
    codes = torch.from_numpy(solved.qweight)
    if x is not None:
        acts, hidden = activation_values(x, inv_smooth, recipe.variant(), t), t.rounded(x @ down)

    def block(rows: slice) -> tuple[float, float]:
        values, weight = weight_values(codes[rows], scales[rows], recipe.group_size), problem.weight[rows]
        if x is None:
            wanted, got = weight, values.mul_(inv_smooth).addmm_(up[:, rows].T, down.T)
        else:
            wanted = torch.addmm(problem.bias[rows], x, weight.T)
            got = t.rounded(torch.addmm(acts @ values.T, hidden, up[:, rows]) + bias[rows])
        scratch = torch.empty_like(got)
        return squares(wanted, scratch), squares(torch.sub(wanted, got, out=got), scratch)

    blocks = (block(slice(start, start + BLOCK)) for start in range(0, codes.shape[0], BLOCK))
    reference, difference = (sum(parts) for parts in zip(*blocks, strict=True))
    return float((difference / reference) ** 0.5 if reference else difference > 0)


def squares(values: torch.Tensor, scratch: torch.Tensor | None = None) -> float:
    """Sum of squares of [rows, columns]: float32 within a row, float64 across rows.

    scratch, of the same shape, is overwritten: fresh memory costs more than the squares.
    """
    return float(torch.square(values, out=scratch).sum(1).double().sum())
