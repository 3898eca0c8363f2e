"""A solved layer is as good as brute force finds it, and means what the op computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from passes.solver import Recipe, output_error, solve_layer
from plugins.svdq_linear import reference
from tests.solver import brute
from tests.solver.synthetic import layer

PLAIN = Recipe(rank=0, smooth=False, refine=0)


def through_the_op(solved, samples, recipe, bias=True):
    """y of the numpy oracle, float64 after the integers."""
    pair = (solved.down, solved.up) if recipe.rank else (None, None)
    x = samples.astype(solved.inv_smooth.dtype)
    y, _ = reference.svdq_linear(
        x,
        solved.qweight,
        solved.wscale,
        solved.inv_smooth,
        *pair,
        solved.bias if bias else None,
        recipe.variant(),
    )
    return y.astype(np.float64)


def relative(y, wanted):
    return np.linalg.norm(y - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize(("bits", "group", "top"), [(4, 64, 7), (8, 128, 127)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_worse_than_every_candidate_with_full_svds(bits, group, top, seed):
    weight, _, samples = layer(96, 128, seed=seed)
    recipe = Recipe(act_bits=bits, group_size=group, rank=12)
    solved = solve_layer(weight, None, samples, recipe)
    assert solved.error <= 1.02 * brute.best_error(weight, samples, 12, group, top)


@pytest.mark.parametrize(("channels", "rank"), [(512, 0), (1536, 4)])
def test_clipping_spares_the_outlier_channels_that_the_branch_leaves(channels, rank):
    """Smoothing makes their weights the largest of their groups."""
    weight, _, samples = layer(96, channels, tokens=256)
    solved = solve_layer(weight, None, samples, Recipe(rank=rank))
    assert solved.error <= 1.01 * brute.best_error(weight, samples, rank, 64, 7)


def test_unrefined_matches_the_best_candidate_of_the_whole_grid():
    weight, _, samples = layer(96, 128)
    solved = solve_layer(weight, None, samples, Recipe(rank=12, refine=0))
    scores = brute.errors_over_grid(weight, samples, 12, 64, 7)
    assert solved.error == pytest.approx(min(scores.values()), rel=0.01)
    assert scores[solved.alpha, solved.beta] <= 1.01 * min(scores.values())


@pytest.mark.parametrize("recipe", [
    Recipe(), Recipe(act_bits=8, group_size=128), Recipe(act_bits=16), Recipe(dtype="float32"),
    Recipe(dtype="bfloat16"),
    Recipe(act_signed=False, act_shift=0.171875), Recipe(rank=0), Recipe(smooth=False, rank=20), PLAIN,
], ids=str)  # fmt: skip
def test_the_reported_error_is_the_oracles(recipe):
    weight, bias, samples = layer(96, 200)
    if not recipe.act_signed:
        samples = np.maximum(samples, np.float16(-0.17))
    solved = solve_layer(weight, bias, samples, recipe)
    x = samples.astype(solved.inv_smooth.dtype).astype(np.float64)
    wanted = x @ weight.astype(np.float64).T + bias.astype(np.float64)
    assert solved.error == pytest.approx(relative(through_the_op(solved, samples, recipe), wanted), rel=2e-4)
    assert output_error(solved, weight, bias, samples, recipe) == solved.error


@pytest.mark.parametrize("shape", [(256, 256), (96, 320), (384, 128)])
@pytest.mark.parametrize("bits", [4, 16])
def test_refinement_never_raises_the_error_and_helps(shape, bits):
    weight, bias, samples = layer(*shape)
    errors = [solve_layer(weight, bias, samples, Recipe(act_bits=bits, refine=n)).error for n in (1, 3, 100)]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[2] < 0.99 * solve_layer(weight, bias, samples, Recipe(act_bits=bits, refine=0)).error


def test_branch_and_smoothing_each_lower_the_error_of_round_to_nearest():
    weight, bias, samples = layer(256, 256)
    plain, smooth, branch, both = (
        solve_layer(weight, bias, samples, Recipe(rank=rank, smooth=on, refine=0)).error
        for rank, on in ((0, False), (0, True), (32, False), (32, True))
    )
    assert max(smooth, branch) < plain and both < min(smooth, branch)


def test_plain_round_to_nearest_by_hand():
    weight = np.zeros((2, 64), np.float16)
    weight[0, :4] = 7, -3.5, 2.4, 1.5  # scale 1: ties go to the even code
    weight[1, :3] = -1.75, 0.6, 0.126  # scale 0.25
    solved = solve_layer(weight, np.array([1, 2], np.float16), np.ones((1, 64), np.float16), PLAIN)
    assert solved.qweight[0, :4].tolist() == [7, -4, 2, 2]
    assert solved.qweight[1, :3].tolist() == [-7, 2, 1]
    assert solved.wscale.tolist() == [[1.0], [0.25]]
    assert solved.bias.tolist() == [1, 2]
    assert solved.inv_smooth.tolist() == [1] * 64
    assert solved.down.shape == (64, 0) and solved.up.shape == (0, 2)


def test_arrays_have_the_ops_shapes_and_types():
    weight, bias, samples = layer(72, 150)
    solved = solve_layer(weight, bias, samples, Recipe(rank=20))
    shapes = {name: (a.shape, a.dtype) for name, a in solved.arrays().items()}
    half = np.dtype(np.float16)
    assert shapes == {
        "inv_smooth": ((150,), half), "down": ((150, 32), half), "up": ((32, 72), half),
        "qweight.packed": ((72 * 150 // 2,), np.dtype(np.uint8)), "wscale": ((72, 3), half), "bias": ((72,), half),
    }  # fmt: skip
    assert np.abs(solved.qweight).max() == 7
    assert not solved.down[:, 20:].any() and not solved.up[20:].any()
    assert solved.down[:, 19].any() and solved.up[19].any()


def test_channels_beyond_k_do_not_exist():
    """K = 150 is solved as if 42 channels of zeros followed."""
    weight, bias, samples = layer(72, 150)
    pad = lambda a: np.pad(a, ((0, 0), (0, 42)))  # noqa: E731
    for recipe in (PLAIN, Recipe(rank=16, smooth=False)):
        short = solve_layer(weight, bias, samples, recipe)
        long = solve_layer(pad(weight), bias, pad(samples), recipe)
        assert short.wscale.shape == long.wscale.shape == (72, 3)
        assert short.error == pytest.approx(long.error, rel=0.02)
    plain, padded = (solve_layer(f(weight), bias, f(samples), PLAIN) for f in (np.asarray, pad))
    assert (padded.qweight[:, :150] == plain.qweight).all() and (padded.wscale == plain.wscale).all()


def test_the_shift_leaves_the_constant_part_exactly():
    """With x = 0 the quantised path sees the shift alone, and the bias takes out what it makes of it."""
    weight, bias, samples = layer(96, 192)
    samples = np.maximum(samples, np.float16(-0.17))
    recipe = Recipe(act_signed=False, act_shift=0.171875, dtype="float32")
    solved = solve_layer(weight, bias, samples, recipe)
    values = solved.qweight * np.repeat(solved.wscale.astype(np.float64), 64, 1)
    exact = bias.astype(np.float64) - 0.171875 * (values @ solved.inv_smooth.astype(np.float64))
    np.testing.assert_allclose(solved.bias, exact, rtol=1e-5, atol=1e-7)
    at_zero = through_the_op(solved, np.zeros((1, 192)), recipe)[0]
    assert np.abs(at_zero - bias).max() < 0.1 * np.abs(solved.bias - bias).max()


def test_unsigned_codes_halve_the_error_of_inputs_that_are_never_negative():
    weight, bias, samples = layer(128, 128)
    samples = np.abs(samples)
    signed, unsigned = (
        solve_layer(weight, bias, samples, Recipe(rank=16, act_signed=s, smooth=False)).error for s in (True, False)
    )
    assert unsigned < 0.85 * signed


def test_without_samples_the_error_is_the_weights():
    weight, bias, _ = layer(256, 256)
    solved, plain = (solve_layer(weight, bias, None, r) for r in (Recipe(rank=16), replace(PLAIN)))
    for s in (solved, plain):
        whole = s.qweight * np.repeat(s.wscale.astype(np.float64), 64, 1) * s.inv_smooth.astype(np.float64)
        whole = whole + (s.down.astype(np.float64) @ s.up.astype(np.float64)).T
        assert s.error == pytest.approx(relative(whole, weight.astype(np.float64)), rel=1e-4)
        assert (s.alpha, s.beta) == (0, 0) and (s.inv_smooth == 1).all()
    assert solved.error < 0.8 * plain.error and solved.rounds > 0


def test_dead_channels_and_dead_rows_are_harmless():
    weight, bias, samples = layer(96, 192)
    weight[:, 5] = 0
    weight[7] = 0
    samples[:, 9] = 0
    samples[:, 64:128] = 0
    solved = solve_layer(weight, bias, samples, Recipe(rank=16))
    assert all(np.isfinite(a.astype(np.float64)).all() for a in solved.arrays().values())
    assert solved.inv_smooth[5] == solved.inv_smooth[9] == 1
    zero = solve_layer(np.zeros_like(weight), None, np.zeros_like(samples), Recipe(rank=16))
    assert zero.error == 0 and not zero.qweight.any()


def test_huge_outliers_stay_within_float16():
    weight, bias, samples = layer(96, 192)
    samples[:, 3] = 60000
    samples[0, 4] = 1e-7
    solved = solve_layer(weight, bias, samples, Recipe(rank=16))
    assert np.isfinite(through_the_op(solved, samples, Recipe(rank=16))).all()
    assert solved.inv_smooth.min() >= 2**-10 and solved.inv_smooth.max() <= 2**10


@pytest.mark.parametrize("what", ["weight", "bias", "samples"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(what, value):
    arrays = dict(zip(("weight", "bias", "samples"), layer(32, 64), strict=True))
    arrays[what][-1, ...] = value
    with pytest.raises(ValueError, match=f"the {what} hold {value}"):
        solve_layer(*arrays.values(), Recipe(rank=16))


def test_what_does_not_fit_is_refused_with_its_values():
    weight, bias, samples = layer(24, 64)
    with pytest.raises(ValueError, match=r"rank is 32, .*\(24, 64\).* at most 24"):
        solve_layer(weight, bias, samples, Recipe())
    solve_layer(weight, bias, samples, Recipe(rank=24))
    with pytest.raises(ValueError, match=r"bias has shape \(64,\)"):
        solve_layer(weight, np.zeros(64), samples, PLAIN)
    with pytest.raises(ValueError, match=r"samples have shape \(64, 24\)"):
        solve_layer(weight, bias, samples.T[:, :24], PLAIN)
    with pytest.raises(ValueError, match=r"samples reach .* beyond float16"):
        solve_layer(weight, bias, samples.astype(np.float32) * 1e6, PLAIN)
    with pytest.raises(ValueError, match=r"weight scale reaches inf|weight scale .*beyond float16"):
        solve_layer(weight.astype(np.float32) * 1e6, bias, samples, PLAIN)
    for wrong in ({"rank": -1}, {"refine": -1}, {"dtype": "int8"}, {"act_bits": 5}, {"group_size": 32}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            Recipe(**wrong)
