"""The elementwise loops, each one pass over its arrays: quantise, dequantise, take the error.

Compiled with numba: as separate torch operations they are dozens of passes over memory and most of a solver's
time. What keeps the inner loops in vector registers: maxima are taken over the floats' bits (ordered like
integers where they are positive, and integer maxima need no NaN rules), and choices are conditional
expressions, not min and max. For one group of 64 a call or another view of an array costs as much as a loop:
what is called per group is inlined, and the bits are viewed once for the whole array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from passes.solver.element import ElementType
from plugins.svdq_linear.spec import WEIGHT_QMAX, Variant, group_count

WEIGHT_TOP = np.float32(WEIGHT_QMAX)
#: With clipping, a group's scale is the best of these times max|w| / 7: its largest weights lose, the others
#: gain. Errors are weighted by what their channels carry: smoothing makes the weights of outlier channels large,
#: and clipping just those raises the output error by up to 24 %. Five ratios lower it by 2 to 3 % with 4-bit
#: activations, 7 to 14 % with 16-bit ones; ratios between them 0.5 % more, ratios below 0.8 nothing.
CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8)

ZERO = np.float32(0)
ONE = np.float32(1)
HALF = np.float32(0.5)
MAGNITUDE = np.int32(0x7FFFFFFF)
SIGN_AND_MAGNITUDE = np.int32(-1)


def compiled(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for one signature, cached on disk where a directory can be written, else in this process."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(signature, cache=True, **settings)(function)
        except RuntimeError:  # numba found no place for its cache
            return numba.njit(signature, **settings)(function)

    return decorate


@compiled("f4(f4, i8, f4, f4)", forceinline=True)
def round_to(value, drop, smallest, largest):  # type: ignore[no-untyped-def]
    """A float32 >= 0 rounded to T: `drop` bits shorter, ties to even; above T's largest number: infinity."""
    if drop == 0:
        return value
    if value < smallest:
        # A subnormal of T is a whole number of steps, and so is the sum of a value and 1.5 * 2^23 steps.
        anchor = HALF * np.float32(3 << drop) * smallest
        return (value + anchor) - anchor
    bits = np.float32(value).view(np.int32)
    bits += (np.int32(1) << (drop - 1)) - 1 + ((bits >> drop) & 1)
    rounded = np.int32((bits >> drop) << drop).view(np.float32)
    return rounded if rounded <= largest else np.float32(np.inf)


@compiled("f4(i4[::1], i4)", forceinline=True)
def _peak(bits, mask):  # type: ignore[no-untyped-def]
    """max|values| of floats given as their bits, or max(values, 0) where the mask keeps the sign."""
    peak = np.int32(0)
    for k in range(bits.shape[0]):
        value = bits[k] & mask
        peak = value if value > peak else peak
    return np.int32(peak).view(np.float32)


# Only the sum of squares may be re-associated, into vector lanes; rint and the comparisons are safe.
@compiled("f4(f4[::1], f4[::1], f4)", fastmath={"reassoc", "nnan", "nsz", "contract"})
def _squared_error(values, importance, scale):  # type: ignore[no-untyped-def]
    inverse = ONE / scale if scale > ZERO else ZERO
    total = ZERO
    for k in range(values.shape[0]):
        code = np.rint(values[k] * inverse)
        code = WEIGHT_TOP if code > WEIGHT_TOP else code
        code = -WEIGHT_TOP if code < -WEIGHT_TOP else code
        off = values[k] - code * scale
        total += importance[k] * (off * off)
    return total


@compiled("f4(f4[::1], i4[::1], f4[::1], b1, i8, f4, f4)", forceinline=True)
def _weight_scale(values, bits, importance, clip, drop, smallest, largest):  # type: ignore[no-untyped-def]
    """The scale (exact in T) of a group of weights: its largest / 7, or with clipping of least error."""
    full = _peak(bits, MAGNITUDE) / WEIGHT_TOP
    best = round_to(full, drop, smallest, largest)
    if not clip:
        return best
    least = _squared_error(values, importance, best)
    for ratio in CLIP_RATIOS[1:]:
        scale = round_to(full * np.float32(ratio), drop, smallest, largest)
        error = _squared_error(values, importance, scale)
        if error < least:
            best, least = scale, error
    return best


@compiled("void(f4[:,::1], f4[:,::1], f4[::1], f4, i8, b1, i8, f4, f4, f4[:,::1])")
def _branch_target(weight, low_rank, importance, step, group, clip, drop, smallest, largest, out):  # type: ignore[no-untyped-def]
    rows, channels = weight.shape
    bits = out.view(np.int32)
    for n in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            w, low, to = weight[n, start:end], low_rank[n, start:end], out[n, start:end]
            for k in range(end - start):
                to[k] = w[k] - low[k]
            scale = _weight_scale(to, bits[n, start:end], importance[start:end], clip, drop, smallest, largest)
            inverse = ONE / scale if scale > ZERO else ZERO
            for k in range(end - start):
                code = np.rint(to[k] * inverse)
                code = WEIGHT_TOP if code > WEIGHT_TOP else code
                code = -WEIGHT_TOP if code < -WEIGHT_TOP else code
                to[k] = low[k] + step * (to[k] - code * scale)


@compiled("void(f4[:,::1], f4[::1], i8, b1, i8, f4, f4, i1[:,::1], f4[:,::1])")
def _weight_codes(weight, importance, group, clip, drop, smallest, largest, codes, scales):  # type: ignore[no-untyped-def]
    rows, channels = weight.shape
    bits = weight.view(np.int32)
    for n in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            w, to = weight[n, start:end], codes[n, start:end]
            scale = _weight_scale(w, bits[n, start:end], importance[start:end], clip, drop, smallest, largest)
            scales[n, start // group] = scale
            inverse = ONE / scale if scale > ZERO else ZERO
            for k in range(end - start):
                code = np.rint(w[k] * inverse)
                code = WEIGHT_TOP if code > WEIGHT_TOP else code
                to[k] = np.int8(-WEIGHT_TOP if code < -WEIGHT_TOP else code)


@compiled("void(f4[:,::1], f4[::1], i8, b1, i8, f4, f4)")
def _round_weight(weight, importance, group, clip, drop, smallest, largest):  # type: ignore[no-untyped-def]
    rows, channels = weight.shape
    bits = weight.view(np.int32)
    for n in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            w = weight[n, start:end]
            scale = _weight_scale(w, bits[n, start:end], importance[start:end], clip, drop, smallest, largest)
            inverse = ONE / scale if scale > ZERO else ZERO
            for k in range(w.shape[0]):
                code = np.rint(w[k] * inverse)
                code = WEIGHT_TOP if code > WEIGHT_TOP else code
                w[k] = (-WEIGHT_TOP if code < -WEIGHT_TOP else code) * scale


@compiled("void(i1[:,::1], f4[:,::1], i8, f4[:,::1])")
def _weight_values(codes, scales, group, out):  # type: ignore[no-untyped-def]
    rows, channels = codes.shape
    for n in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            scale, code, to = scales[n, start // group], codes[n, start:end], out[n, start:end]
            for k in range(end - start):
                to[k] = np.float32(code[k]) * scale


@compiled("void(f4[:,::1], f4[::1], f4, i8, f4, f4, i8, f4, f4, f4[:,::1])")
def _activation_values(x, inv_smooth, shift, group, qmin, qmax, drop, smallest, largest, out):  # type: ignore[no-untyped-def]
    rows, channels = x.shape
    bits = out.view(np.int32)
    mask = SIGN_AND_MAGNITUDE if qmin == ZERO else MAGNITUDE
    for m in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            raw, inverse, to = x[m, start:end], inv_smooth[start:end], out[m, start:end]
            for k in range(end - start):
                to[k] = (raw[k] + shift) * inverse[k]
            scale = round_to(_peak(bits[m, start:end], mask) / qmax, drop, smallest, largest)
            divisor = scale if scale > ZERO else np.float32(np.inf)
            for k in range(end - start):
                # A true division, not a product with the inverse: the op's codes, bit for bit.
                code = np.rint(to[k] / divisor)
                code = qmax if code > qmax else code
                to[k] = (qmin if code < qmin else code) * scale


def branch_target(
    weight: torch.Tensor,
    low_rank: torch.Tensor,
    importance: torch.Tensor,
    step: float,
    group: int,
    t: ElementType,
    out: torch.Tensor,
) -> None:
    """out = L + step · (W - Q(W - L) - L), float32 [rows, K]: what the branch should be. Q as in weight_codes."""
    arrays = weight.numpy(), low_rank.numpy(), importance.numpy()
    _branch_target(*arrays, np.float32(step), group, True, *t.form, out.numpy())


def weight_codes(
    weight: torch.Tensor, importance: torch.Tensor, group: int, clip: bool, t: ElementType
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [N, K] in -7..7 and scales float32 [N, groups], exact in T, infinite where T overflows.

    importance [K]: what the square of an error of a channel counts when clipping searches the scales.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty((weight.shape[0], group_count(weight.shape[1], group)), dtype=torch.float32)
    _weight_codes(weight.numpy(), importance.numpy(), group, clip, *t.form, codes.numpy(), scales.numpy())
    return codes, scales


def round_weight(weight: torch.Tensor, importance: torch.Tensor, group: int, clip: bool, t: ElementType) -> None:
    """weight [N, K] float32 := Q(weight), the values of `weight_codes`, in place."""
    _round_weight(weight.numpy(), importance.numpy(), group, clip, *t.form)


def weight_values(codes: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """The weight that codes and scales stand for, float32 [N, K]."""
    out = torch.empty(codes.shape, dtype=torch.float32)
    _weight_values(codes.numpy(), scales.numpy(), group, out.numpy())
    return out


def activation_values(x: torch.Tensor, inv_smooth: torch.Tensor, variant: Variant, t: ElementType) -> torch.Tensor:
    """Q(x̂) of the op as the values of its codes, float32 [S, K]; x̂ itself for a weight-only variant."""
    shift = np.float32(variant.act_shift)
    if not variant.quantises_activations:
        return (x + float(shift)) * inv_smooth
    out = torch.empty_like(x)
    bounds = np.float32(variant.qmin), np.float32(variant.qmax)
    _activation_values(x.numpy(), inv_smooth.numpy(), shift, variant.group_size, *bounds, *t.form, out.numpy())
    return out
