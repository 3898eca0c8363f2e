"""The elementwise loops, each one pass over its arrays: quantise, dequantise, take the error.

Compiled with numba: as separate torch operations they are ten passes over memory and most of a solver's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from passes.solver.element import ElementType
from plugins.svdq_linear.spec import WEIGHT_QMAX, Variant, group_count

WEIGHT_TOP = np.float32(WEIGHT_QMAX)
ZERO = np.float32(0)
ONE = np.float32(1)


def compiled(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for one signature, cached on disk where some directory can be written, else in this process only."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(signature, cache=True, **settings)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # numba found no place for its cache
            return numba.njit(signature, **settings)(function)  # type: ignore[no-any-return]

    return decorate


# Neither NaN nor the sign of zero matters to a maximum over checked weights; saying so lets it use vector registers.
# Re-association stays forbidden: the rest must round as written.
_MAXIMUM = {"fastmath": {"nnan", "nsz"}}


@compiled("f4(f4, i8, i8)", inline="always")
def round_to(value, precision, tiny):  # type: ignore[no-untyped-def]
    """A non-negative float32 rounded to `precision` bits and multiples of 2^tiny, ties to even; overflow is kept."""
    _, exponent = math.frexp(value)
    unit = max(exponent - precision, tiny)
    # Two factors, because 2^-unit alone overflows float32 below the smallest normal numbers of bfloat16.
    return np.float32(math.ldexp(np.rint(math.ldexp(np.float64(value), -unit)), unit))


@compiled("void(f4[:,::1], f4[:,::1], i8, i8, i8, f4[:,::1])", **_MAXIMUM)
def _weight_error(weight, low_rank, group, precision, tiny, out):  # type: ignore[no-untyped-def]
    rows, channels = weight.shape
    for n in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            peak = ZERO
            for k in range(start, end):
                residual = weight[n, k] - low_rank[n, k]
                out[n, k] = residual
                peak = max(peak, abs(residual))
            scale = round_to(peak / WEIGHT_TOP, precision, tiny)
            inverse = ONE / scale if scale > ZERO else ZERO
            for k in range(start, end):
                code = min(max(np.rint(out[n, k] * inverse), -WEIGHT_TOP), WEIGHT_TOP)
                out[n, k] = weight[n, k] - code * scale


@compiled("void(f4[:,::1], i8, i8, i8, i1[:,::1], f4[:,::1])", **_MAXIMUM)
def _weight_codes(weight, group, precision, tiny, codes, scales):  # type: ignore[no-untyped-def]
    rows, channels = weight.shape
    for n in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            peak = ZERO
            for k in range(start, end):
                peak = max(peak, abs(weight[n, k]))
            scale = round_to(peak / WEIGHT_TOP, precision, tiny)
            scales[n, start // group] = scale
            inverse = ONE / scale if scale > ZERO else ZERO
            for k in range(start, end):
                codes[n, k] = np.int8(min(max(np.rint(weight[n, k] * inverse), -WEIGHT_TOP), WEIGHT_TOP))


@compiled("void(i1[:,::1], f4[:,::1], i8, f4[:,::1])")
def _weight_values(codes, scales, group, out):  # type: ignore[no-untyped-def]
    rows, channels = codes.shape
    for n in range(rows):
        for start in range(0, channels, group):
            scale = scales[n, start // group]
            for k in range(start, min(start + group, channels)):
                out[n, k] = np.float32(codes[n, k]) * scale


@compiled("void(f4[:,::1], f4[::1], f4, i8, f4, f4, i8, i8, f4[:,::1])")
def _activation_values(x, inv_smooth, shift, group, qmin, qmax, precision, tiny, out):  # type: ignore[no-untyped-def]
    rows, channels = x.shape
    floor = ZERO if qmin == ZERO else np.float32(-np.inf)
    for m in range(rows):
        for start in range(0, channels, group):
            end = min(start + group, channels)
            peak = ZERO
            for k in range(start, end):
                value = (x[m, k] + shift) * inv_smooth[k]
                out[m, k] = value
                peak = max(peak, abs(max(value, floor)))
            scale = round_to(peak / qmax, precision, tiny)
            for k in range(start, end):
                # A true division, not a product with the inverse: the op's codes, bit for bit.
                code = np.rint(out[m, k] / scale) if scale > ZERO else ZERO
                out[m, k] = min(max(code, qmin), qmax) * scale


def weight_error(weight: torch.Tensor, low_rank: torch.Tensor, group: int, t: ElementType, out: torch.Tensor) -> None:
    """out = W - Q(W - L), all float32 [rows, K]: what the low-rank branch has to make up for."""
    _weight_error(weight.numpy(), low_rank.numpy(), group, t.precision, t.tiny, out.numpy())


def weight_codes(weight: torch.Tensor, group: int, t: ElementType) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric absmax codes int8 [N, K] in -7..7 and scales float32 [N, groups] that are exact in T."""
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty((weight.shape[0], group_count(weight.shape[1], group)), dtype=torch.float32)
    _weight_codes(weight.numpy(), group, t.precision, t.tiny, codes.numpy(), scales.numpy())
    return codes, scales


def weight_values(codes: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """The weight that codes and scales stand for, float32 [N, K]."""
    out = torch.empty(codes.shape, dtype=torch.float32)
    _weight_values(codes.numpy(), scales.numpy(), group, out.numpy())
    return out


def activation_values(x: torch.Tensor, inv_smooth: torch.Tensor, variant: Variant, t: ElementType) -> torch.Tensor:
    """Q(x̂) of the op as the values its codes stand for, float32 [S, K]; x̂ itself for a weight-only variant."""
    shift = np.float32(variant.act_shift)
    if not variant.quantises_activations:
        return (x + float(shift)) * inv_smooth
    out = torch.empty_like(x)
    qmin, qmax = np.float32(variant.qmin), np.float32(variant.qmax)
    _activation_values(
        x.numpy(), inv_smooth.numpy(), shift, variant.group_size, qmin, qmax, t.precision, t.tiny, out.numpy()
    )
    return out
