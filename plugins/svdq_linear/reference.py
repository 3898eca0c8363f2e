"""Oracle of svdq::SvdqLinear: the contract in numpy, integers exact, everything after them in float64.

Shares no code with the kernels or with the op's ONNX function body; they are tested against it.
T below is numpy's float32 or float16, or ml_dtypes.bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plugins.svdq_linear.spec import WEIGHT_QMAX, Variant, group_count, padded_channels

Array = np.ndarray[Any, Any]

#: Relative error that float32 sums of a few thousand terms in any order stay below in practice.
SUM_ERROR = 2.0**-20

#: Neither GELU nor SiLU is steeper than this: it carries a bound through them.
STEEPEST = 1.13


def quantize_activation(x: Array, inv_smooth: Array, variant: Variant, dtype: Any) -> tuple[Array, Array]:
    """Q of the contract, bit for bit: per token and group, dynamic, divided by the scale as rounded to T.

    x [..., K] and inv_smooth [K] are of any float type (values as T holds them); dtype is T. Returns
    q [M, K], int8 if the variant is signed, uint8 if not, and scale T[M, groups]; M is the product of x's
    leading dimensions. A group with a NaN or an infinity has scale NaN (and q 0); one whose scale rounds
    to 0 has q 0. Raises ValueError for a weight-only variant.
    """
    qmax, qmin, group = variant.qmax, variant.qmin, variant.group_size
    smoothed = _smoothed(x, inv_smooth, variant)
    rows, channels = smoothed.shape
    padded = np.zeros((rows, padded_channels(channels, group)), np.float32)
    padded[:, :channels] = smoothed
    groups = padded.reshape(rows, padded.shape[1] // group, group)
    with np.errstate(all="ignore"):
        peak = np.abs(groups).max(-1) if variant.act_signed else np.maximum(groups, np.float32(0)).max(-1)
        peak = np.where(np.isfinite(groups).all(-1), peak, np.float32(np.nan))
        scale = (peak / np.float32(qmax)).astype(dtype)
        divisor = scale.astype(np.float32)[..., None]
        ratio = np.where(divisor > 0, groups / np.where(divisor > 0, divisor, np.float32(1)), np.float32(0))
        codes = np.clip(np.rint(ratio), qmin, qmax)
    codes = codes.reshape(padded.shape)[:, :channels]
    return codes.astype(np.int8 if variant.act_signed else np.uint8), scale


def svdq_linear(
    x: Array,
    qweight: Array,
    wscale: Array,
    inv_smooth: Array,
    down: Array | None,
    up: Array | None,
    bias: Array | None,
    variant: Variant,
) -> tuple[Array, Array]:
    """y of the contract and how far another implementation may be from it.

    x T[..., K]; qweight int [N, K] in -7..7; wscale T[N, ceil(K/G)]; inv_smooth T[K]; down T[K, R],
    up T[R, N] (both None, or R = 0, exactly if the variant has no branch); bias T[N] or None. T is x's
    dtype. Returns y T[..., N] and tolerance float64[..., N]: 1 ulp of T at y, plus 2^-20 of the sum of the
    terms' magnitudes, plus what x·down costs where float32 and float64 sums may round to different neighbours
    in T. Raises ValueError where shapes, codes and variant do not fit together.
    """
    channels = x.shape[-1]
    _check(channels, qweight, wscale, inv_smooth, down, up, variant)
    outputs = qweight.shape[0]
    spread = np.repeat(wscale.astype(np.float64), variant.group_size, axis=1)[:, :channels]
    weight = qweight.astype(np.float64) * spread
    with np.errstate(all="ignore"):
        acts = _dequantised(x, inv_smooth, variant)
        total = _product(acts, weight.T)
        terms = _product(np.abs(acts), np.abs(weight).T)
        slack = np.zeros_like(total)
        if down is not None and up is not None and variant.branch:
            flat = x.reshape(-1, channels).astype(np.float64)
            hidden = _product(flat, down.astype(np.float64))
            reach = SUM_ERROR * _product(np.abs(flat), np.abs(down.astype(np.float64)))
            rounded = hidden.astype(x.dtype).astype(np.float64)
            low, high = ((hidden + sign * reach).astype(x.dtype).astype(np.float64) for sign in (-1, 1))
            slack = _product(np.maximum(high - rounded, rounded - low), np.abs(up.astype(np.float64)))
            total = total + _product(rounded, up.astype(np.float64))
            terms = terms + _product(np.abs(rounded), np.abs(up.astype(np.float64)))
        if bias is not None:
            total = total + bias.astype(np.float64)
            terms = terms + np.abs(bias.astype(np.float64))
        y = _activate(total, variant.activation)
        result = y.astype(x.dtype)
        steep = 1.0 if variant.activation == "none" else STEEPEST
        tolerance = _ulp(y, x.dtype) + steep * (SUM_ERROR * terms + slack)
    shape = (*x.shape[:-1], outputs)
    return result.reshape(shape), tolerance.reshape(shape)


def agrees(actual: Array, expected: Array, tolerance: Array) -> Array:
    """Elementwise: is `actual` within `tolerance` of `expected`? NaN agrees with NaN, inf with itself."""
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        near = np.abs(a - e) <= tolerance
    return near | (a == e) | (np.isnan(a) & np.isnan(e))


def _smoothed(x: Array, inv_smooth: Array, variant: Variant) -> Array:
    flat = x.reshape(-1, x.shape[-1]).astype(np.float32)
    with np.errstate(all="ignore"):
        return (flat + np.float32(variant.act_shift)) * inv_smooth.astype(np.float32)


def _dequantised(x: Array, inv_smooth: Array, variant: Variant) -> Array:
    """Q(x̂) as float64 [M, K]; x̂ itself where the variant is weight-only."""
    if not variant.quantises_activations:
        return _smoothed(x, inv_smooth, variant).astype(np.float64)
    codes, scale = quantize_activation(x, inv_smooth, variant, x.dtype)
    spread = np.repeat(scale.astype(np.float64), variant.group_size, axis=1)[:, : codes.shape[1]]
    return codes.astype(np.float64) * spread


def _product(a: Array, b: Array) -> Array:
    """a @ b where a NaN of a spoils its row only: BLAS promises that no more than numpy does."""
    bad = np.logical_not(np.isfinite(a).all(-1))
    out = np.where(bad[:, None], 0.0, a) @ b
    for row in np.flatnonzero(bad):
        out[row] = (a[row][:, None] * b).sum(0)
    return out


def _activate(z: Array, activation: str) -> Array:
    if activation == "gelu_tanh":
        return 0.5 * z * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))
    if activation == "silu":
        return z / (1.0 + np.exp(-z))
    return z


def _ulp(y: Array, dtype: Any) -> Array:
    """Distance from |y| to T's next larger number, float64."""
    mantissa, smallest = {"float32": (23, -126), "float16": (10, -14), "bfloat16": (7, -126)}[np.dtype(dtype).name]
    size = np.where(np.isfinite(y), np.abs(y), 0.0)
    _, exponent = np.frexp(np.maximum(size, 2.0**smallest))
    return np.ldexp(1.0, exponent - 1 - mantissa)


def _check(
    channels: int,
    qweight: Array,
    wscale: Array,
    inv_smooth: Array,
    down: Array | None,
    up: Array | None,
    variant: Variant,
) -> None:
    outputs = qweight.shape[0]
    groups = group_count(channels, variant.group_size)
    if qweight.shape != (outputs, channels) or inv_smooth.shape != (channels,):
        raise ValueError(f"x has K = {channels}, but qweight is {qweight.shape} and inv_smooth {inv_smooth.shape}")
    if wscale.shape != (outputs, groups):
        raise ValueError(f"wscale is {wscale.shape}; groups of {variant.group_size} need {(outputs, groups)}")
    if np.abs(qweight.astype(np.int32)).max(initial=0) > WEIGHT_QMAX:
        raise ValueError(f"qweight reaches {int(np.abs(qweight.astype(np.int32)).max())}; codes are -7..7")
    rank = 0 if down is None or up is None else down.shape[1]
    if (rank > 0) != variant.branch:
        raise ValueError(f"down and up have rank {rank}, but the variant says branch={variant.branch}")
    if down is not None and up is not None and (down.shape != (channels, rank) or up.shape != (rank, outputs)):
        raise ValueError(
            f"down is {down.shape} and up {up.shape}; they must be {(channels, rank)} and {(rank, outputs)}"
        )
