"""What is packed is unpacked, and every number lies where plugins/README.md says that a lane looks for it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.svdq_linear import layout
from plugins.svdq_linear.spec import padded_channels

SIZES = st.integers(1, 200)
RANKS = st.sampled_from([16, 32, 48, 96])
DTYPES = st.sampled_from([np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)])
GROUPS = st.sampled_from([64, 128])


def numbered(shape, dtype):
    """Numbers that are all different, as bits, whatever they mean."""
    return np.arange(1, np.prod(shape) + 1).astype(np.uint16).reshape(shape).view(dtype)


@settings(max_examples=80, deadline=None)
@given(n=SIZES, k=SIZES, rank=RANKS, dtype=DTYPES, group=GROUPS, seed=st.integers(0, 2**32 - 1))
def test_unpacking_what_was_packed_gives_it_back(n, k, rank, dtype, group, seed):
    codes = np.random.default_rng(seed).integers(-7, 8, (n, k)).astype(np.int8)
    down, up = numbered((k, rank), dtype), numbered((rank, n), dtype)
    wscale = numbered((n, padded_channels(k, group) // group), dtype)
    inv_smooth, bias = numbered((k,), dtype), numbered((n,), dtype)
    packed = layout.pack(codes, wscale, inv_smooth, down, up, bias, group)
    assert (layout.unpack_weight(packed.qweight, n, k) == codes).all()
    for found, given_ in (
        (layout.unpack_scale(packed.wscale, n), wscale),
        (layout.unpack_down(packed.down, k), down),
        (layout.unpack_up(packed.up, n), up),
        (packed.inv_smooth[:k], inv_smooth),
        (packed.bias[:n], bias),
    ):
        assert (found.view(np.uint16) == given_.view(np.uint16)).all()


@settings(max_examples=40, deadline=None)
@given(n=SIZES, k=SIZES, rank=RANKS, group=GROUPS)
def test_padding_is_zero(n, k, rank, group):
    ones = np.ones((n, k), np.int8)
    channels, columns = padded_channels(k, group), layout.padded_outputs(n)
    whole = layout.unpack_weight(layout.pack_weight(ones, channels), columns, channels)
    assert whole.sum() == n * k and (whole[:n, :k] == 1).all()
    half = np.float16
    packed = layout.pack(
        ones, np.ones((n, channels // group), half), np.ones(k, half), np.ones((k, rank), half),
        np.ones((rank, n), half), np.ones(n, half), group,
    )  # fmt: skip
    assert packed.wscale.sum(dtype=float) == n * (channels // group)
    assert packed.inv_smooth.sum(dtype=float) == k and packed.inv_smooth.shape == (channels,)
    assert packed.down.sum(dtype=float) == k * rank and packed.up.sum(dtype=float) == n * rank
    assert packed.bias.sum(dtype=float) == n and packed.bias.shape == (columns,)


def lane_columns(lane, q, t):
    """The column of a block of 64 that a lane's words of tile t of load q belong to."""
    r = lane // 4
    return 16 * (r // 2) + 2 * (2 * q + t) + r % 2


def test_one_code_at_a_time_lands_in_the_nibble_of_its_lane():
    """Every position of a block: word (load q, lane, tile t, octet h), nibble i."""
    for q in range(4):
        for lane in range(32):
            for t in range(2):
                for h in range(2):
                    for i in range(8):
                        codes = np.zeros((64, 64), np.int8)
                        codes[lane_columns(lane, q, t), 32 * h + 8 * (lane % 4) + i] = -3
                        words = layout.pack_weight(codes, 64).view(np.uint32).reshape(4, 32, 2, 2)
                        assert words[q, lane, t, h] == 13 << (4 * i) and np.count_nonzero(words) == 1


def test_blocks_follow_columns_then_channels():
    codes = np.zeros((130, 200), np.int8)
    codes[129, 199] = 5  # block 2 of columns, block 3 of channels
    words = layout.pack_weight(codes, 256)
    assert words.shape == (3, 4, 512) and words.dtype == np.int32
    assert np.argwhere(words)[0, :2].tolist() == [2, 3]


@pytest.mark.parametrize("where", ["down", "up"])
def test_one_factor_at_a_time_lands_in_the_half_of_its_lane(where):
    """down: load (tile t, octet h), lane 4n + p, pair 2s + w, half b. up: load q, lane, tile t, rank 4p + i."""
    for lane in range(32):
        n, p = lane // 4, lane % 4
        for load in range(4):
            for half in range(8):
                values = np.zeros((64, 16) if where == "down" else (16, 64), np.float16)
                if where == "down":
                    t, h = load // 2, load % 2
                    values[32 * h + 8 * p + half, 4 * (n // 2) + 2 * t + n % 2] = 1
                    packed = layout.pack_down(values, 64)
                else:
                    values[4 * p + half % 4, lane_columns(lane, load, half // 4)] = 1
                    packed = layout.pack_up(values)
                assert packed.shape == (1, 1, 1024)
                assert np.flatnonzero(packed).tolist() == [(load * 32 + lane) * 8 + half]


def test_what_is_no_layer_is_refused():
    half = np.float16
    codes, one = np.zeros((64, 100), np.int8), np.ones
    with pytest.raises(ValueError, match="not one layer with groups of 64"):
        layout.pack(codes, one((64, 1), half), one(100, half), None, None, one(64, half), 64)
    with pytest.raises(ValueError, match="come together"):
        layout.pack(codes, one((64, 2), half), one(100, half), one((100, 16), half), None, one(64, half), 64)
    with pytest.raises(ValueError, match="rank is 8"):
        layout.pack_down(one((100, 8), half), 128)
