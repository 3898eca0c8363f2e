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
from passes.solver.refine import refine
from tests.solver.synthetic import layer


@pytest.mark.parametrize(
    ("errors", "kept", "asked"),
    [
        ([10, 9, 8, 8.5, 7], 2, 4),  # the first worse round ends it
        ([10, 9, 8.9999, 5], 2, 3),  # a gain below 0.1 % is the last, and kept
        ([10, 11, 5], 0, 2),
        ([10, 9, 8, 7, 6, 5, 4], 4, 5),  # no more rounds than allowed
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

    best, rounds = refine(weight, ones, start, 4, 64, ELEMENT_TYPES["float16"], score)
    assert rounds == kept and best is seen[kept] and len(seen) == asked
    assert seen[0] is start


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
