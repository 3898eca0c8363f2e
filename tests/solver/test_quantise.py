"""The compiled loops round as the op does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passes.solver.element import ELEMENT_TYPES
from passes.solver.quantise import (
    CLIP_RATIOS,
    activation_values,
    branch_target,
    round_to,
    weight_codes,
    weight_values,
)
from plugins.svdq_linear.reference import quantize_activation
from plugins.svdq_linear.spec import Variant

TYPES = pytest.mark.parametrize("name", ELEMENT_TYPES)


@TYPES
def test_rounding_to_t_is_numpys_for_all_magnitudes_and_ties(name):
    t = ELEMENT_TYPES[name]
    random = np.random.default_rng(0)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.concatenate([
        np.abs(random.standard_normal(4000)) * 10.0 ** random.integers(-42, 8, 4000),
        halves[::7], (halves[1:] + halves[:-1])[::7] / 2,
        [0, 65519, 65520, 3.4e38, 2.0**-149, 2.0**-133, 2.0**-126],
    ]).astype(np.float32)  # fmt: skip
    with np.errstate(over="ignore"):
        wanted = values.astype(t.numpy).astype(np.float32)
    assert np.array_equal(np.array([round_to(v, *t.form) for v in values], np.float32), wanted)


@TYPES
@pytest.mark.parametrize("variant", [
    Variant(), Variant(act_bits=8, group_size=128), Variant(act_signed=False, act_shift=0.171875),
    Variant(act_bits=8, act_signed=False), Variant(act_signed=False),
], ids=lambda v: v.overload)  # fmt: skip
def test_activations_are_the_oracles_bit_for_bit(name, variant):
    t = ELEMENT_TYPES[name]
    random = torch.Generator().manual_seed(0)
    magnitudes = 10.0 ** torch.randint(-6, 4, (37, 1), generator=random)
    x = t.rounded(torch.randn(37, 200, generator=random) * magnitudes)
    x[3] = 0
    inv_smooth = t.rounded(torch.rand(200, generator=random) * 3 + 0.01)
    codes, scale = quantize_activation(t.array(x), t.array(inv_smooth), variant, t.numpy)
    wanted = codes.astype(np.float32) * np.repeat(scale.astype(np.float32), variant.group_size, 1)[:, :200]
    assert np.array_equal(activation_values(x, inv_smooth, variant, t).numpy(), wanted)


def test_ties_are_ties_of_a_true_division():
    """(k + 1/2) · s is halfway between codes; a product with 1/s misses that for some s."""
    t = ELEMENT_TYPES["float16"]
    scale = (torch.arange(1025, 2049, 16) / 1024).view(-1, 1)
    x = torch.zeros(64, 64)
    x[:, :8] = scale * torch.tensor([7, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, -6.5])
    y = activation_values(x, torch.ones(64), Variant(), t)
    assert torch.equal(y[:, :8] / scale, torch.tensor([7, 0, 2, 2, 4, 4, 6, -6.0]).expand(64, 8))


def test_a_scale_beyond_t_spoils_the_group_as_in_the_op():
    x = torch.full((1, 64), 60000.0)
    y = activation_values(x, torch.full((64,), 1024.0), Variant(), ELEMENT_TYPES["float16"])
    assert bool(y.isnan().all())


def test_a_weight_only_variant_passes_the_smoothed_activation():
    x = torch.tensor([[1.0, -2.0]])
    y = activation_values(x, torch.tensor([2.0, 0.5]), Variant(act_bits=16, act_shift=0.25), ELEMENT_TYPES["float16"])
    assert y.tolist() == [[2.5, -0.875]]


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("weighted", [False, True])
def test_clipping_takes_the_ratio_of_least_squared_error_in_every_group(group, weighted):
    t = ELEMENT_TYPES["float16"]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 200, generator=generator) ** 3
    importance = torch.rand(200, generator=generator) ** 3 if weighted else torch.ones(200)
    codes, scales = weight_codes(weight, importance, group, True, t)
    got = weight_values(codes, scales, group).numpy()
    assert codes.abs().max() == 7
    for n in range(16):
        for g, start in enumerate(range(0, 200, group)):
            w = weight[n, start : start + group].numpy().astype(np.float64)
            counts = importance[start : start + group].numpy().astype(np.float64)
            options = [np.float64(np.float16(np.abs(w).max() / 7 * r)) for r in CLIP_RATIOS]
            errors = [counts @ np.square(w - np.clip(np.rint(w / s), -7, 7) * s) for s in options]
            assert float(scales[n, g]) == pytest.approx(options[int(np.argmin(errors))], rel=1e-3)
            assert counts @ np.square(w - got[n, start : start + group]) == pytest.approx(min(errors), rel=1e-4)


def test_a_channel_that_carries_much_is_not_clipped():
    weight = torch.full((1, 64), 0.5)
    weight[0, 9] = 7.0
    importance = torch.ones(64)
    for importance[9], clipped in ((1, True), (100, False)):
        _, scales = weight_codes(weight, importance, 64, True, ELEMENT_TYPES["float32"])
        assert (float(scales) < 1) == clipped


def test_without_clipping_the_largest_weight_has_code_7():
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    codes, scales = weight_codes(weight, torch.ones(256), 64, False, ELEMENT_TYPES["float32"])
    peaks = weight.abs().unflatten(1, (4, 64)).amax(-1)
    assert torch.equal(scales, peaks / 7)
    assert bool((codes.abs().unflatten(1, (4, 64)).amax(-1) == 7).all())


def test_the_branchs_target_is_what_quantisation_leaves_over():
    t = ELEMENT_TYPES["float16"]
    generator = torch.Generator().manual_seed(0)
    weight, low = (torch.randn(8, 150, generator=generator) for _ in range(2))
    importance = torch.rand(150, generator=generator)
    values = weight_values(*weight_codes(weight - low, importance, 64, True, t), 64)
    for step in (1.0, 1.5):
        out = torch.empty_like(weight)
        branch_target(weight, low, importance, step, 64, t, out)
        torch.testing.assert_close(out, low + step * (weight - values - low))
