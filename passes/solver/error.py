"""The output error: what every choice of the solver is judged by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from passes.solver.problem import Problem, check, one_thread
from passes.solver.quantise import activation_values, round_weight, weight_values
from passes.solver.recipe import Recipe
from passes.solver.solved import SolvedLayer

Factors = tuple[torch.Tensor, torch.Tensor]


class Judge:
    """Scores factors for one smoothing of one (part of a) layer; lower is better.

    The score is ||X·Wᵀ - y||², y as the op computes it short of the last rounding to T (the bias cancels);
    without samples, ||W - Ŵ||² of the weights.
    """

    def __init__(self, problem: Problem, inv_smooth: torch.Tensor) -> None:
        self.problem, self.inv_smooth = problem, inv_smooth
        self.smoothed = problem.weight / inv_smooth
        recipe, samples = problem.recipe, problem.samples
        if samples is not None:
            self.acts = (
                activation_values(samples, inv_smooth, recipe.variant(), problem.t)
                - recipe.act_shift * inv_smooth
            )
            self.wanted = samples @ problem.weight.T

    def residual(self, factors: Factors | None) -> torch.Tensor:
        """What the rounded factors leave of the smoothed weight for 4 bits, [N, K], a new tensor."""
        if factors is None:
            return self.smoothed.clone()
        down, up = factors
        return torch.addmm(self.smoothed, up.T, (down / self.inv_smooth[:, None]).T, alpha=-1)

    def score(self, factors: Factors | None) -> float:
        recipe, samples, t = self.problem.recipe, self.problem.samples, self.problem.t
        values = self.residual(factors)
        if samples is None:
            residual = values.clone()
            round_weight(values, recipe.group_size, recipe.clip, t)
            return float(((residual - values) * self.inv_smooth).square().sum(dtype=torch.float64))
        round_weight(values, recipe.group_size, recipe.clip, t)
        y = self.acts @ values.T
        if factors is not None:
            down, up = factors
            y.addmm_(t.rounded(samples @ down), up)
        squares = float((self.wanted - y).square().sum(dtype=torch.float64))
        return squares if squares == squares else float("inf")


def output_error(
    solved: SolvedLayer,
    weight: np.ndarray,
    bias: np.ndarray | None,
    samples: np.ndarray | None,
    recipe: Recipe,
) -> float:
    """||y - y_ref|| / ||y_ref|| (Frobenius) of a solved layer, y in T as the op computes it, y_ref = X·Wᵀ + bias.

    weight [N, K], bias [N] and samples [S, K] as for solve_layer; without samples, the relative error of the weight.
    """
    with one_thread():
        return relative_error(check(weight, bias, samples, recipe), solved)


def relative_error(problem: Problem, solved: SolvedLayer) -> float:
    """`output_error` of a checked problem."""
    recipe, t = problem.recipe, problem.t
    inv_smooth, down, up, wscale, bias = (
        torch.from_numpy(a.astype(np.float32)).clone()
        for a in (solved.inv_smooth, solved.down, solved.up, solved.wscale, solved.bias)
    )
    values = weight_values(torch.from_numpy(solved.qweight).clone(), wscale, recipe.group_size)
    if problem.samples is None:
        whole = torch.addmm(values * inv_smooth, up.T, down.T)
        return _relative(problem.weight, whole)
    y = activation_values(problem.samples, inv_smooth, recipe.variant(), t) @ values.T
    if down.shape[1]:
        y.addmm_(t.rounded(problem.samples @ down), up)
    return _relative(torch.addmm(problem.bias, problem.samples, problem.weight.T), t.rounded(y + bias))


def _relative(wanted: torch.Tensor, got: torch.Tensor) -> float:
    norm: Callable[[torch.Tensor], float] = lambda a: float(a.square().sum(dtype=torch.float64)) ** 0.5  # noqa: E731
    reference, difference = norm(wanted), norm(wanted - got)
    return difference / reference if reference else float(difference > 0)
