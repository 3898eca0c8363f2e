"""The packed layout of svdq::SvdqLinear's constants: the only place that packs and unpacks them.

The kernels multiply with warp-wide matrix instructions (PTX ISA, "Matrix fragments for mma.m16n8k64" and
"mma.m16n8k16"), in which lane l of 32 owns fixed elements of a tile. Constants are stored in the order in which the
lanes want them, so that each lane's share is one 16-byte load and a warp's share is contiguous:

    qweight  int32 [N/64, K/64, 512]     8 codes to a word, channel i of 8 in bits 4i..4i+3
    wscale   T     [K/G, N]              natural order, columns padded
    inv_smooth T   [K]                   padding is 0: padded channels quantise to 0
    down     T     [K/64, R/16, 1024]
    up       T     [N/64, R/16, 1024]
    bias     T     [N]

N and K are padded with zeros to multiples of 64 (K to whole groups), R is a multiple of 16 already. Within a block of
64 columns, column 16c + 2j + e is column 2c + e of the MMA's tile j: so lane quad member c ends with 16 neighbouring
columns of y and stores them as vectors. plugins/README.md draws it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from plugins.svdq_linear.nibbles import pack_codes
from plugins.svdq_linear.spec import RANK_MULTIPLE, group_count, padded_channels

Array = np.ndarray[Any, Any]

#: Raised with every change of what the words mean. Kernels refuse any other.
LAYOUT_VERSION = 1

#: Columns and channels of a block.
BLOCK = 64


class Packed(NamedTuple):
    """Constants in node order; down and up are None without a branch. Shapes as above."""

    qweight: Array
    wscale: Array
    inv_smooth: Array
    down: Array | None
    up: Array | None
    bias: Array


def padded_outputs(outputs: int) -> int:
    """N rounded up to whole blocks."""
    return -(-outputs // BLOCK) * BLOCK


def pack(
    qweight: Array,
    wscale: Array,
    inv_smooth: Array,
    down: Array | None,
    up: Array | None,
    bias: Array,
    group_size: int,
) -> Packed:
    """All constants of a layer, given as spec.py has them: qweight int [N, K] in -7..7, wscale T[N, K/G],
    inv_smooth T[K], down T[K, R], up T[R, N], bias T[N]. Raises ValueError where shapes do not fit together.
    """
    n, k = qweight.shape
    if wscale.shape != (n, group_count(k, group_size)) or inv_smooth.shape != (k,) or bias.shape != (n,):
        raise ValueError(
            f"qweight {qweight.shape}, wscale {wscale.shape}, inv_smooth {inv_smooth.shape} and bias {bias.shape} "
            f"are not one layer with groups of {group_size}"
        )
    if (down is None) != (up is None):
        raise ValueError("down and up come together")
    channels = padded_channels(k, group_size)
    return Packed(
        pack_weight(qweight, channels),
        pack_scale(wscale),
        _padded(inv_smooth, (channels,)),
        None if down is None else pack_down(down, channels),
        None if up is None else pack_up(up),
        _padded(bias, (padded_outputs(n),)),
    )


def pack_weight(codes: Array, channels: int) -> Array:
    """Codes int [N, K] → int32 [N/64, channels/64, 512]; `channels` is K padded to whole groups."""
    rows = _padded(codes.astype(np.int8, copy=False), (codes.shape[0], channels))
    return pack_weight_bytes(pack_codes(rows).reshape(len(rows), channels // 2), channels)


def pack_weight_bytes(packed: Array, channels: int) -> Array:
    """`pack_weight` of codes that are two to a byte already: uint8 [N, K/2], K even."""
    n = padded_outputs(packed.shape[0])
    # Eight neighbouring channels of a row are a word as they are; what is left is to move whole words.
    words = _padded(packed, (n, channels // 2)).view("<u4")
    # column = 16c + 2j + e, j = 2q + t; channel = 32h + 8p + i: word (q, lane = 4(2c + e) + p, t, h) has nibbles i.
    split = words.reshape(n // 64, 4, 4, 2, 2, channels // 64, 2, 4)  # [N, c, q, t, e, K, h, p]
    ordered = np.ascontiguousarray(split.transpose(0, 5, 2, 1, 4, 7, 3, 6))  # [N, K, q, c, e, p, t, h]
    return ordered.reshape(n // 64, channels // 64, 512).view(np.int32)


def unpack_weight(words: Array, outputs: int, channels: int) -> Array:
    """Inverse of pack_weight: int8 [outputs, channels] in -8..7."""
    blocks, steps, _ = words.shape
    shifts = np.arange(8, dtype=np.uint32) * 4
    nibbles = ((words.view(np.uint32)[..., None] >> shifts) & 15).astype(np.int8)
    split = nibbles.reshape(blocks, steps, 4, 4, 2, 4, 2, 2, 8).transpose(0, 3, 2, 6, 4, 1, 7, 5, 8)
    codes = split.reshape(blocks * 64, steps * 64)[:outputs, :channels]
    return np.where(codes > 7, codes - 16, codes).astype(np.int8)


def pack_scale(wscale: Array) -> Array:
    """wscale T[N, K/G] → T[K/G, N padded]: one group's scales are neighbours. Padding is 0."""
    return np.ascontiguousarray(_padded(wscale, (padded_outputs(wscale.shape[0]), wscale.shape[1])).T)


def unpack_scale(packed: Array, outputs: int) -> Array:
    """Inverse of pack_scale: T[outputs, K/G]."""
    return np.ascontiguousarray(packed.T[:outputs])


def pack_down(down: Array, channels: int) -> Array:
    """down T[K, R] → T[channels/64, R/16, 1024]."""
    rank = _whole_rank(down.shape[1])
    # channel = 32h + 8p + 4s + 2w + b is element b of register w of MMA j = 2h + s; rank = 4m + 2t + e is column
    # 2m + e of n8 tile t: 8 halves (s, w, b) of lane 4(2m + e) + p, in the load (t, h).
    split = _padded(down, (channels, rank)).reshape(channels // 64, 2, 4, 2, 2, 2, rank // 16, 4, 2, 2)
    ordered = split.transpose(0, 6, 8, 1, 7, 9, 2, 3, 4, 5)  # [K, R, t, h, m, e, p, s, w, b]
    return np.ascontiguousarray(ordered).reshape(channels // 64, rank // 16, 1024)


def unpack_down(packed: Array, channels: int) -> Array:
    """Inverse of pack_down: T[channels, R]."""
    steps, blocks, _ = packed.shape
    split = packed.reshape(steps, blocks, 2, 2, 4, 2, 4, 2, 2, 2).transpose(0, 3, 6, 7, 8, 9, 1, 4, 2, 5)
    return np.ascontiguousarray(split.reshape(steps * 64, blocks * 16)[:channels])


def pack_up(up: Array) -> Array:
    """up T[R, N] → T[N/64, R/16, 1024]."""
    rank, outputs = _whole_rank(up.shape[0]), padded_outputs(up.shape[1])
    # rank = 4p + i, column = 16c + 4q + 2t + e: 8 halves (t, i) of lane 4(2c + e) + p, in the load q.
    split = _padded(up, (rank, outputs)).reshape(
        rank // 16, 4, 4, outputs // 64, 4, 4, 2, 2
    )  # [R, p, i, N, c, q, t, e]
    ordered = split.transpose(3, 0, 5, 4, 7, 1, 6, 2)  # [N, R, q, c, e, p, t, i]
    return np.ascontiguousarray(ordered).reshape(outputs // 64, rank // 16, 1024)


def unpack_up(packed: Array, outputs: int) -> Array:
    """Inverse of pack_up: T[R, outputs]."""
    columns, blocks, _ = packed.shape
    split = packed.reshape(columns, blocks, 4, 4, 2, 4, 2, 4).transpose(1, 5, 7, 0, 3, 2, 6, 4)
    return np.ascontiguousarray(split.reshape(blocks * 16, columns * 64)[:, :outputs])


def _whole_rank(rank: int) -> int:
    if rank <= 0 or rank % RANK_MULTIPLE:
        raise ValueError(f"rank is {rank}; the packed layout holds positive multiples of {RANK_MULTIPLE}")
    return rank


def _padded(values: Array, shape: tuple[int, ...]) -> Array:
    """`values` with zeros behind, up to `shape`."""
    if values.shape == shape:
        return values
    out = np.zeros(shape, values.dtype)
    out[tuple(slice(s) for s in values.shape)] = values
    return out
