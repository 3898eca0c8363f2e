"""The smoothing search finds, with a third of the work, what the whole grid finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passes.solver import Recipe, smoothing, solve_layer
from passes.solver.layer import _Part
from passes.solver.problem import check
from tests.solver.synthetic import layer


def test_the_grid_is_the_published_one():
    pairs = {(s.alpha, round(s.beta, 9)) for s in smoothing.GRID}
    alphas = [i / 20 for i in range(1, 20)]
    assert pairs == {(0, 0)} | {(a, 0) for a in alphas} | {(a, round(1 - a, 9)) for a in alphas}
    assert len(smoothing.GRID) == 39


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("shape", [(128, 128), (64, 192)])
def test_coarse_to_fine_is_within_a_percent_of_all_39(shape, bits):
    weight, bias, samples = layer(*shape)
    problem = check(weight, bias, samples, Recipe(act_bits=bits))
    part, peaks = _Part(problem), smoothing.peaks(problem)
    inverse = {s: smoothing.inverse_factors(s, *peaks, problem) for s in smoothing.GRID}
    scores = {s: part.score(inverse[s]) for s in smoothing.GRID}
    tried = []
    best, inv_smooth = smoothing.choose(problem, lambda i: tried.append(1) or part.score(i))
    assert scores[best] ** 0.5 <= 1.01 * min(scores.values()) ** 0.5
    assert torch.equal(inv_smooth, inverse[best])
    assert len(tried) <= 14


@pytest.mark.parametrize("bits", [4, 16])
def test_the_choice_is_good_after_refinement_too(bits, monkeypatch):
    """With 16-bit activations the best smoothing before refinement is another than after it."""
    weight, bias, samples = layer(512, 512)
    recipe = Recipe(act_bits=bits)
    chosen = solve_layer(weight, bias, samples, recipe)
    problem = check(weight, bias, samples, recipe)
    errors = []
    for step in range(1, smoothing.STEPS, 2):
        strength = smoothing.Strength(step, False)
        forced = strength, smoothing.inverse_factors(strength, *smoothing.peaks(problem), problem)
        monkeypatch.setattr(smoothing, "choose", lambda *_, forced=forced: forced)
        errors.append(solve_layer(weight, bias, samples, recipe).error)
    assert chosen.error <= 1.02 * min(errors)


def test_inverse_factors_follow_the_formula_up_to_one_common_factor():
    weight, bias, samples = layer(64, 128, dtype=np.float32)
    problem = check(weight, bias, samples, Recipe(dtype="float32", rank=16, act_shift=0.25))
    got = smoothing.inverse_factors(smoothing.Strength(14, True), *smoothing.peaks(problem), problem).double().numpy()
    wanted = np.abs(weight).max(0) ** 0.3 / np.abs(samples + np.float32(0.25)).max(0) ** 0.7
    np.testing.assert_allclose(got / got[0], wanted / wanted[0], rtol=1e-4)
    assert np.exp(np.log(got).mean()) == pytest.approx(1, rel=1e-4)


def test_inverse_factors_stay_within_the_ops_bounds_in_t():
    weight, bias, samples = layer(64, 128)
    samples[:, 0], samples[:, 1] = 60000, 1e-7
    problem = check(weight, bias, samples, Recipe(rank=16))
    got = smoothing.inverse_factors(smoothing.Strength(19, False), *smoothing.peaks(problem), problem)
    assert float(got.min()) >= 2**-10 and float(got.max()) == 2**10
    assert torch.equal(got, got.half().float())
