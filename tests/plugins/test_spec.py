"""The contract's data: what is a variant, what is refused, how it is named."""

from __future__ import annotations

import itertools

import pytest

from plugins.svdq_linear import spec
from plugins.svdq_linear.spec import Variant, group_count, padded_channels, padded_rank


def every_variant():
    for group, bits, signed, shift, activation, branch in itertools.product(
        spec.GROUP_SIZES,
        spec.ACT_BITS,
        (True, False),
        (0.0, 0.171875, 0.28125),
        spec.ACTIVATIONS,
        (True, False),
    ):
        if bits < 16 or signed:
            yield Variant(group, bits, signed, shift, activation, branch)


def test_every_variant_has_a_name_of_its_own_that_is_an_identifier():
    names = [variant.overload for variant in every_variant()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_names_are_stable():
    assert Variant().overload == "a4_s_g64_none_lr"
    assert Variant(128, 8, False, spec.GELU_SHIFT, "silu", False).overload == "a8_u_g128_silu_nolr_shift0p171875"


def test_attributes_come_back():
    for variant in every_variant():
        attributes = {**variant.attributes(rank=32 if variant.branch else 0), "layout_version": 1}
        assert Variant.from_attributes(attributes, branch=variant.branch) == variant
    assert Variant.from_attributes({}, branch=True) == Variant()
    assert type(Variant().attributes()["act_signed"]) is int


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"), [(4, 1, -7, 7), (8, 1, -127, 127), (4, 0, 0, 15), (8, 0, 0, 255)]
)
def test_code_ranges(bits, signed, low, high):
    variant = Variant(act_bits=bits, act_signed=bool(signed))
    assert (variant.qmin, variant.qmax) == (low, high)


def test_inputs_leave_out_the_branch_where_there_is_none():
    assert Variant().inputs == ("x", "qweight", "wscale", "inv_smooth", "down", "up", "bias")
    assert Variant(branch=False).inputs == ("x", "qweight", "wscale", "inv_smooth", "bias")


@pytest.mark.parametrize(("wrong", "said"), [
    ({"group_size": 32}, "group_size is 32"), ({"act_bits": 5}, "act_bits is 5"),
    ({"activation": "relu"}, "'relu'"),
    ({"act_shift": float("nan")}, "nan"), ({"act_shift": 0.1}, "0.1"), ({"act_shift": 1e300}, "1e\\+300"),
    ({"act_bits": 16, "act_signed": False}, "act_bits 16"),
])  # fmt: skip
def test_what_the_op_does_not_have_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Variant(**wrong)


def test_ranks_that_contradict_the_variant_are_refused():
    for variant, rank in ((Variant(), 0), (Variant(), 20), (Variant(branch=False), 16)):
        with pytest.raises(ValueError, match=f"rank {rank}"):
            variant.attributes(rank)
    with pytest.raises(ValueError, match="no activation codes"):
        _ = Variant(act_bits=16).qmax


def test_padding():
    assert [padded_rank(r) for r in (0, 1, 16, 17, 32)] == [0, 16, 16, 32, 32]
    assert padded_channels(5600, 64) == 5632 and group_count(5600, 64) == 88
    assert padded_channels(128, 128) == 128
    with pytest.raises(ValueError, match="-1"):
        padded_rank(-1)
