"""The portable form of svdq::SvdqLinear in standard operators (opset 21): the pattern that passes emit and fuse.

Everything is computed in float32 whatever T is: T[...] → Cast → ... → CastLike(·, x), so that one body serves float16
and float32. Written once here: the passes emit the parts, and `svdq_linear` is their composition, which `fuse` looks
for and makes the function body.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from passes.emit import Emitter
from plugins.svdq_linear.spec import Variant

OPSET = 21
_FLOAT = ir.DataType.FLOAT
CODE_TYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


def wide(e: Emitter, value: ir.Value) -> ir.Value:
    """float32 of a T tensor."""
    return e("Cast", value, to=_FLOAT)


def smoothed(e: Emitter, x: ir.Value, inv_smooth: ir.Value, shift: float) -> ir.Value:
    """x̂ = (x + shift) ⊙ inv_smooth, float32 [..., K]."""
    x32 = wide(e, x)
    if shift:
        x32 = e("Add", x32, e.const(shift, np.float32))
    return e("Mul", x32, wide(e, inv_smooth))


def quantised(e: Emitter, x_hat: ir.Value, x: ir.Value, variant: Variant, k: int) -> ir.Value:
    """Q(x̂): quantise and dequantise per token and group, float32 [..., K].

    The scale is rounded to x's type before it divides; 0 is replaced by 1 for the division; NaN and Inf spread over
    their group because Σ(x̂·0) is added to the scale (ReduceMax drops NaN); the clip keeps −8 from occurring.
    """
    group, qmax = variant.group_size, variant.qmax
    axes = e.const([1], np.int64)
    missing = -k % group
    padded = e("Pad", x_hat, e.const([0, missing], np.int64), None, e.const([-1], np.int64)) if missing else x_hat
    groups = e("Reshape", padded, e.const([-1, group], np.int64))
    high = groups if not variant.act_signed else e("Abs", groups)
    top = e("ReduceMax", high, axes, keepdims=1)
    if not variant.act_signed:
        top = e("Max", top, e.const(0, np.float32))
    spread = e("ReduceSum", e("Mul", groups, e.const(0, np.float32)), axes, keepdims=1)
    scale = wide(e, e("CastLike", e("Div", e("Add", top, spread), e.const(qmax, np.float32)), x))
    limit = e("Mul", scale, e.const(qmax, np.float32))
    floor = e("Neg", limit) if variant.act_signed else e.const(0, np.float32)
    clipped = e("Max", e("Min", groups, limit), floor)
    divisor = e("Where", e("Equal", scale, e.const(0, np.float32)), e.const(1, np.float32), scale)
    divisor = e("Squeeze", divisor, axes)
    codes = e("QuantizeLinear", clipped, divisor, axis=0, output_dtype=CODE_TYPES[variant.act_bits, variant.act_signed])
    values = e("DequantizeLinear", codes, divisor, axis=0)
    flat = e("Reshape", values, e("Shape", padded))
    if not missing:
        return flat
    last = e.const([-1], np.int64)
    return e("Slice", flat, e.const([0], np.int64), e.const([k], np.int64), last)


def product(e: Emitter, values: ir.Value, qweight: ir.Value, wscale: ir.Value, group_size: int) -> ir.Value:
    """values · dequant(qweight)ᵀ, float32 [..., N].

    The weight is dequantised before it is transposed: onnxruntime fuses the other order into a MatMulNBits with
    8-bit activations.
    """
    weight = e("DequantizeLinear", qweight, wide(e, wscale), axis=1, block_size=group_size)
    return e("MatMul", values, e("Transpose", weight, perm=[1, 0]))


def low_rank(e: Emitter, x: ir.Value, down: ir.Value, up: ir.Value) -> ir.Value:
    """(x · down) · up, float32 [..., N]; x · down is rounded to T in between, as the kernel stores it."""
    inner = e("CastLike", e("MatMul", wide(e, x), wide(e, down)), x)
    return e("MatMul", wide(e, inner), wide(e, up))


def activated(e: Emitter, value: ir.Value, activation: str) -> ir.Value:
    """The activation in float32."""
    if activation == "gelu_tanh":
        return e("Gelu", value, approximate="tanh")
    if activation == "silu":
        return e("Mul", value, e("Sigmoid", value))
    return value


def svdq_linear(e: Emitter, inputs: Mapping[str, ir.Value], variant: Variant, k: int) -> ir.Value:
    """The whole op; `inputs` by the names of spec.INPUTS. Returns y, T[..., N]."""
    x = inputs["x"]
    main = smoothed(e, x, inputs["inv_smooth"], variant.act_shift)
    if variant.quantises_activations:
        main = quantised(e, main, x, variant, k)
    total = product(e, main, inputs["qweight"], inputs["wscale"], variant.group_size)
    if variant.branch:
        total = e("Add", total, low_rank(e, x, inputs["down"], inputs["up"]))
    total = e("Add", total, wide(e, inputs["bias"]))
    return e("CastLike", activated(e, total, variant.activation), x)
