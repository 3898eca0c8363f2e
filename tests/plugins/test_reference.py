"""The oracle against the contract's sentences, one by one, and against plain float arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.svdq_linear.reference import agrees, quantize_activation, svdq_linear
from plugins.svdq_linear.spec import Variant

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), BF16]
VARIANTS = [Variant(group, bits, signed) for group in (64, 128) for bits in (4, 8) for signed in (True, False)]
UNSIGNED = Variant(act_signed=False)


def ones(channels, dtype=np.float32):
    return np.ones(channels, dtype)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), variant=st.sampled_from(VARIANTS), dtype=st.sampled_from(DTYPES),
    channels=st.integers(1, 200), magnitude=st.integers(-12, 6), shift=st.sampled_from([0.0, 0.171875]),
)  # fmt: skip
def test_codes_are_the_nearest_in_range(seed, variant, dtype, channels, magnitude, shift):
    variant = Variant(variant.group_size, variant.act_bits, variant.act_signed, shift)
    random = np.random.default_rng(seed)
    x = (random.standard_normal((3, channels)) * 2.0**magnitude).astype(dtype)
    inverse = np.exp(random.standard_normal(channels)).astype(dtype)
    codes, scale = quantize_activation(x, inverse, variant, dtype)
    assert codes.dtype == (np.int8 if variant.act_signed else np.uint8)
    assert codes.shape == (3, channels) and scale.shape == (3, -(-channels // variant.group_size))
    assert scale.dtype == dtype
    assert codes.min() >= variant.qmin and codes.max() <= variant.qmax
    smoothed = (x.astype(np.float32) + np.float32(shift)) * inverse.astype(np.float32)
    for m in range(3):
        for g in range(scale.shape[1]):
            here = slice(g * variant.group_size, min((g + 1) * variant.group_size, channels))
            v, q = smoothed[m, here], codes[m, here].astype(np.float64)
            peak = np.abs(v).max() if variant.act_signed else max(v.max(), np.float32(0))
            assert scale[m, g] == (peak / np.float32(variant.qmax)).astype(dtype)
            s = float(scale[m, g])
            if s == 0:
                assert not q.any()
                continue
            # Nearest code of the range, by brute force over neighbours.
            for step in (-1, 1):
                other = np.clip(q + step, variant.qmin, variant.qmax)
                assert (np.abs(v - q * s) <= np.abs(v - other * s) * (1 + 1e-6) + 1e-30).all()


def test_ties_go_to_even_codes():
    x = np.zeros((1, 64), np.float32)
    x[0, :7] = 7, 0.5, 1.5, 2.5, -0.5, -1.5, -6.5
    codes, scale = quantize_activation(x, ones(64), Variant(), np.float32)
    assert scale[0, 0] == 1 and codes[0, :7].tolist() == [7, 0, 2, 2, 0, -2, -6]


def test_ties_are_ties_of_a_true_division():
    """(k + 1/2) · s is halfway between codes; a product with 1/s misses that for some s."""
    scales = (np.arange(1025, 2049, 16) / 1024).astype(np.float32)
    x = np.zeros((64, 64), np.float32)
    x[:, :8] = scales[:, None] * np.array([7, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, -6.5], np.float32)
    codes, scale = quantize_activation(x, ones(64), Variant(), np.float16)
    assert (scale[:, 0] == scales).all()
    assert (codes[:, :8] == [7, 0, 2, 2, 4, 4, 6, -6]).all()


def test_the_rounded_scale_is_the_divisor():
    """7.1875 / 7 is 1.0267857; float16 has 1.0263672, bfloat16 1.0234375. 1.538 is between their ties."""
    x = np.zeros((1, 64), np.float32)
    x[0, :2] = 7.1875, 1.5380859375
    codes = {d.name: quantize_activation(x, ones(64), Variant(), d) for d in DTYPES}
    assert float(codes["float16"][1][0, 0]) == 1.0263671875 and float(codes["bfloat16"][1][0, 0]) == 1.0234375
    assert [int(codes[d.name][0][0, 1]) for d in DTYPES] == [1, 1, 2]


def test_the_scale_rounded_down_still_clamps():
    x = np.full((1, 64), 0.0, np.float32)
    x[0, 0] = 3e-7  # float16 rounds 4.3e-8 to its smallest number, 6e-8, and 1e-7 / 7 to zero
    codes, scale = quantize_activation(x, ones(64), Variant(), np.float16)
    assert float(scale[0, 0]) == 2.0**-24 and codes[0, 0] == 5
    codes, scale = quantize_activation(x / 3, ones(64), Variant(), np.float16)
    assert scale[0, 0] == 0 and codes[0, 0] == 0
    codes, _ = quantize_activation(np.full((1, 64), 8.9e-8 * 7, np.float32), ones(64), Variant(), np.float16)
    assert codes.max() == 7  # 8.9e-8 rounds to 6e-8, and 10.45 is out of range


def test_an_infinite_scale_has_codes_zero():
    x = np.full((1, 64), 60000, np.float16)
    codes, scale = quantize_activation(x, np.full(64, 1024, np.float16), Variant(), np.float16)
    assert np.isinf(scale[0, 0]) and not codes.any()


@pytest.mark.parametrize("variant", [Variant(), UNSIGNED, Variant(act_bits=8)], ids=lambda v: v.overload)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_spoil_their_group_and_row_and_no_other(variant, bad, dtype):
    x = np.abs(np.random.default_rng(0).standard_normal((3, 150))).astype(dtype)
    clean_codes, clean_scale = quantize_activation(x, ones(150), variant, dtype)
    x[1, 70] = bad
    codes, scale = quantize_activation(x, ones(150), variant, dtype)
    assert np.isnan(scale[1, 1].astype(np.float32)) and not codes[1, 64:128].any()
    keep = np.ones((3, 3), bool)
    keep[1, 1] = False
    assert (scale[keep] == clean_scale[keep]).all()
    assert (codes[[0, 2]] == clean_codes[[0, 2]]).all() and (codes[1, 128:] == clean_codes[1, 128:]).all()
    y, _ = svdq_linear(x, *random_layer(5, 150, 64, 16, dtype), Variant(64, variant.act_bits, variant.act_signed))
    assert np.isnan(y[1].astype(np.float32)).all() and np.isfinite(y[[0, 2]].astype(np.float32)).all()


def test_unsigned_codes_clip_what_is_negative():
    x = np.zeros((1, 64), np.float32)
    x[0, :3] = 15, -4, 7.4
    codes, scale = quantize_activation(x, ones(64), UNSIGNED, np.float32)
    assert scale[0, 0] == 1 and codes[0, :3].tolist() == [15, 0, 7]
    codes, scale = quantize_activation(-np.abs(x), ones(64), UNSIGNED, np.float32)
    assert scale[0, 0] == 0 and not codes.any()


def test_the_shift_comes_before_the_smoothing():
    x, inverse = np.full((1, 64), 0.75, np.float32), np.full(64, 4, np.float32)
    _, scale = quantize_activation(x, inverse, Variant(act_shift=0.25), np.float32)
    assert scale[0, 0] == np.float32(4.0) / np.float32(7)


def random_layer(outputs, channels, group, rank, dtype, seed=0):
    """qweight, wscale, inv_smooth, down, up, bias."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.standard_normal(shape).astype(dtype)  # noqa: E731
    qweight = random.integers(-7, 8, (outputs, channels)).astype(np.int8)
    wscale = (random.random((outputs, -(-channels // group))) * 0.1).astype(dtype)
    branch = (normal(channels, rank), normal(rank, outputs)) if rank else (None, None)
    return (
        qweight,
        wscale,
        np.exp(0.3 * normal(channels).astype(np.float32)).astype(dtype),
        *branch,
        normal(outputs),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [
    Variant(), Variant(128, 8), Variant(64, 16), Variant(64, 4, False, 0.171875, "none", False),
    Variant(64, 4, True, 0.0, "gelu_tanh"), Variant(128, 8, True, 0.0, "silu", False),
], ids=lambda v: v.overload)  # fmt: skip
def test_a_float32_implementation_agrees_and_a_wrong_one_does_not(variant, dtype):
    """The op written down once more, element by element, in float32 and another order of sums."""
    x = np.random.default_rng(1).standard_normal((2, 3, 150)).astype(dtype)
    arrays = random_layer(40, 150, variant.group_size, 16 if variant.branch else 0, dtype)
    y, tolerance = svdq_linear(x, *arrays, variant)
    assert y.shape == tolerance.shape == (2, 3, 40) and y.dtype == dtype
    qweight, wscale, inverse, down, up, bias = (None if a is None else a.astype(np.float32) for a in arrays)
    flat = x.reshape(6, 150).astype(np.float32)
    acts = (flat + np.float32(variant.act_shift)) * inverse
    if variant.act_bits < 16:
        codes, scale = quantize_activation(x, arrays[2], variant, dtype)
        acts = codes * np.repeat(scale.astype(np.float32), variant.group_size, 1)[:, :150]
    weight = qweight * np.repeat(wscale, variant.group_size, 1)[:, :150]
    total = np.zeros((6, 40), np.float32)
    for k in reversed(range(150)):
        total += acts[:, k, None] * weight[None, :, k]
    if down is not None:
        total += (flat @ down).astype(dtype).astype(np.float32) @ up
    total = (total + bias).astype(np.float64)
    if variant.activation == "gelu_tanh":
        with np.errstate(over="ignore"):
            total = total / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (total + 0.044715 * total**3)))
    if variant.activation == "silu":
        total = total * 0.5 * (1 + np.tanh(total / 2))
    mine = total.astype(dtype).reshape(2, 3, 40)
    assert agrees(mine, y, tolerance).all()
    assert (tolerance < 0.02 * (np.abs(y.astype(np.float64)) + 1)).all()
    wrong = (total * 1.03 + 0.02).astype(dtype).reshape(2, 3, 40)
    assert agrees(wrong, y, tolerance).mean() < 0.5


def test_the_branch_is_rounded_to_t_between_its_factors():
    """1 + 2^-11 is halfway between float16 neighbours: in T it is 1, and times 2048 the loss shows."""
    x = np.zeros((1, 64), np.float16)
    x[0, :2] = 1, 2.0**-11
    zeros = np.zeros((1, 64), np.int8), np.ones((1, 1), np.float16), np.ones(64, np.float16)
    down = np.zeros((64, 16), np.float16)
    down[:2, 0] = 1
    up = np.zeros((16, 1), np.float16)
    up[0] = 2048
    y, tolerance = svdq_linear(x, *zeros, down, up, None, Variant())
    assert y[0, 0] == 2048 and tolerance[0, 0] >= 2  # and either neighbour of the tie would do


def test_the_tolerance_is_one_ulp_plus_two_to_the_minus_20_of_the_terms():
    x = np.zeros((1, 64), np.float16)
    qweight = np.zeros((1, 64), np.int8)
    for bias, ulp in ((1.0, 2.0**-10), (1.999, 2.0**-10), (2.0, 2.0**-9), (2.0**-20, 2.0**-24)):
        _, tolerance = svdq_linear(
            x, qweight, np.ones((1, 1), np.float16), np.ones(64, np.float16), None, None,
            np.array([bias], np.float16), Variant(branch=False),
        )  # fmt: skip
        assert tolerance[0, 0] == pytest.approx(ulp + 2.0**-20 * float(np.float16(bias)), rel=1e-12)
    x[0, :2] = 7, -7
    qweight[0, :2] = 3
    arrays = qweight, np.ones((1, 1), np.float16), np.ones(64, np.float16), None, None, None
    y, tolerance = svdq_linear(x, *arrays, Variant(branch=False))
    assert y[0, 0] == 0 and tolerance[0, 0] == pytest.approx(42 * 2.0**-20 + 2.0**-24, rel=1e-3)


def test_what_does_not_fit_together_is_refused():
    x = np.zeros((2, 100), np.float32)
    qweight, wscale, inverse, down, up, bias = random_layer(8, 100, 64, 16, np.float32)
    with pytest.raises(ValueError, match="branch=False"):
        svdq_linear(x, qweight, wscale, inverse, down, up, bias, Variant(branch=False))
    with pytest.raises(ValueError, match="rank 0"):
        svdq_linear(x, qweight, wscale, inverse, None, None, bias, Variant())
    with pytest.raises(ValueError, match=r"wscale is \(8, 1\)"):
        svdq_linear(x, qweight, wscale[:, :1], inverse, down, up, bias, Variant())
    with pytest.raises(ValueError, match="qweight reaches 8"):
        svdq_linear(x, qweight - 8 + 7, wscale, inverse, down, up, bias, Variant())
    with pytest.raises(ValueError, match="K = 100"):
        svdq_linear(x, qweight[:, :64], wscale, inverse, down, up, bias, Variant())
    with pytest.raises(ValueError, match="no activation codes"):
        quantize_activation(x, inverse, Variant(act_bits=16), np.float32)
