"""The alternation keeps its best round and ends where it gains nothing; the judge scores what the op does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passes.solver import Recipe, solve_layer
from passes.solver.element import ELEMENT_TYPES
from passes.solver.error import Judge
from passes.solver.lowrank import random_basis, truncated_svd
from passes.solver.problem import check
from passes.solver.quantise import branch_target
from passes.solver.refine import STEP, one_round, refine
from tests.solver.synthetic import layer


@pytest.mark.parametrize(
    ("errors", "kept", "asked"),
    [
        ([10, 9, 8, 8.5, 8.6, 7], 2, 5),  # two rounds in succession without a gain end it
        ([10, 9, 9.1, 8, 8.1, 8.2, 7], 3, 6),  # one does not
        ([10, 9, 8.99, 8.98, 5], 3, 4),  # a gain below 0.3 % is none, but kept
        ([10, 11, 12, 5], 0, 3),
        ([10, 9, 8, 7, 6, 5, 4, 3], 5, 6),  # no more rounds than allowed
        ([0, 0], 0, 2),
    ],
)
def test_the_best_round_is_kept(errors, kept, asked):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(64)
    start = truncated_svd(weight, 8, random_basis(64, 8, 32, 0), 2, ones)
    seen = []

    def score(low):
        seen.append(low)
        return errors[len(seen) - 1] ** 2

    best, rounds = refine(weight, ones, start, 5, 64, ELEMENT_TYPES["float16"], score)
    assert rounds == kept and best is seen[kept] and len(seen) == asked
    assert seen[0] is start


def test_a_round_is_the_svd_of_what_quantisation_leaves():
    """With as many directions as channels, one step of subspace iteration is the whole SVD."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(150, 24, generator=generator) * torch.arange(1, 25) ** -0.5
    weights, t = torch.rand(24, generator=generator) + 0.2, ELEMENT_TYPES["float16"]
    low = truncated_svd(weight, 16, random_basis(24, 16, 24, 0), 2, weights)
    branch = low.left @ low.core.T
    target = torch.empty_like(weight)
    branch_target(weight, branch, weights.square(), STEP, 64, t, target)
    u, s, vh = torch.linalg.svd(target.double() * weights, full_matrices=False)
    wanted = (u[:, :16] * s[:16]) @ vh[:16] / weights
    found = one_round(weight, weights, low, 64, t)
    torch.testing.assert_close(found.left @ found.core.T, wanted.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("shift", [0.0, 0.171875])
def test_the_judges_score_is_the_error_of_the_solved_layer(bits, shift):
    weight, bias, samples = layer(96, 192)
    samples = np.maximum(samples, np.float16(-0.17))
    recipe = Recipe(act_bits=bits, rank=16, act_signed=bits == 16, act_shift=shift, dtype="float32")
    solved = solve_layer(weight, bias, samples, recipe)
    problem = check(weight, bias, samples, recipe)
    judge = Judge(problem, torch.from_numpy(solved.inv_smooth))
    score = judge.score((torch.from_numpy(solved.down), torch.from_numpy(solved.up)))
    assert (score**0.5) / float((problem.wanted + problem.bias).norm()) == pytest.approx(solved.error, rel=1e-3)
