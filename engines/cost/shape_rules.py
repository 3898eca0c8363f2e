"""Shapes of operators that ONNX has no inference for: the project's own and those that onnxruntime puts into a graph.

A rule takes a node's attributes and inputs and gives (shape, dtype name) of its first outputs, or () where an input's
shape is unknown. onnxruntime's operators are described in its docs/ContribOperators.md; those of its blocked layout
("nchwc") only in onnxruntime/core/graph/contrib_ops/nchwc_schema_defs.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Outputs = Sequence[tuple[tuple[int, ...], str]]
Rule = Callable[[Mapping[str, Any], Sequence[Any]], Outputs]


def _same(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    x = inputs[0]
    return () if x.shape is None else ((x.shape, x.dtype),)


def _skip_norm(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    """The norm, its mean and inverse deviation, and the sum that was normalised."""
    x = inputs[0]
    if x.shape is None:
        return ()
    row = (*x.shape[:-1], 1)
    return (x.shape, x.dtype), (row, "FLOAT"), (row, "FLOAT"), (x.shape, x.dtype)


def _svdq_linear(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    """[..., K] → [..., N]; N is the packed form's attribute n, or the rows of the portable form's weight."""
    x, weight = inputs[0], inputs[1]
    if x.shape is None or weight.shape is None:
        return ()
    return (((*x.shape[:-1], attributes.get("n", weight.shape[0])), x.dtype),)


def _fused_matmul(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    a, b = inputs[0], inputs[1]
    if a.shape is None or b.shape is None:
        return ()
    m = a.shape[-1] if attributes.get("transA") else a.shape[-2] if len(a.shape) > 1 else 1
    n = b.shape[-2] if attributes.get("transB") else b.shape[-1]
    batch = a.shape[:-2] if len(a.shape) >= len(b.shape) else b.shape[:-2]
    return (((*batch, m, n), a.dtype),)


def _matmul_nbits(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    x = inputs[0]
    return () if x.shape is None else (((*x.shape[:-1], attributes["N"]), x.dtype),)


def _convolution(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    """N, C, H, W (C padded to whole blocks on both sides)."""
    x, w = inputs[0], inputs[1]
    if x.shape is None or w.shape is None:
        return ()
    spatial = len(x.shape) - 2
    kernel, stride = w.shape[2:], attributes.get("strides", [1] * spatial)
    dilation, pads = attributes.get("dilations", [1] * spatial), attributes.get("pads", [0] * 2 * spatial)
    if attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = [-(-x.shape[2 + i] // stride[i]) for i in range(spatial)]
    else:
        sizes = [
            (x.shape[2 + i] + pads[i] + pads[i + spatial] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i in range(spatial)
        ]
    return (((x.shape[0], w.shape[0], *sizes), x.dtype),)


def _reorder_output(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    x = inputs[0]
    if x.shape is None:
        return ()
    n, _, *spatial = x.shape
    channels = attributes["channels"]
    return (((n, *spatial, channels) if attributes.get("channels_last") else (n, channels, *spatial), x.dtype),)


def _reorder_input(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    x = inputs[0]
    if x.shape is None:
        return ()
    channels = x.shape[-1] if attributes.get("channels_last") else x.shape[1]
    spatial = x.shape[1:-1] if attributes.get("channels_last") else x.shape[2:]
    return (((x.shape[0], -(-channels // 8) * 8, *spatial), x.dtype),)


def _upsample(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Outputs:
    x = inputs[0]
    if x.shape is None:
        return ()
    return ((tuple(size * scale for size, scale in zip(x.shape, attributes["scales"], strict=True)), x.dtype),)


_MS, _NCHWC = "com.microsoft", "com.microsoft.nchwc"

RULES: dict[tuple[str, str], Rule] = {
    ("svdq", "SvdqLinear"): _svdq_linear,
    **{(_MS, kind): _same for kind in ("QuickGelu", "FastGelu", "Gelu", "BiasGelu", "BiasSoftmax", "GroupNorm",
                                       "BiasAdd", "RotaryEmbedding")},
    (_MS, "SkipLayerNormalization"): _skip_norm,
    (_MS, "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("", "SimplifiedLayerNormalization"): _same,
    (_MS, "FusedMatMul"): _fused_matmul,
    (_MS, "MatMulNBits"): _matmul_nbits,
    (_MS, "FusedConv"): _convolution,
    (_NCHWC, "Conv"): _convolution,
    (_NCHWC, "ReorderInput"): _reorder_input,
    (_NCHWC, "ReorderOutput"): _reorder_output,
    (_NCHWC, "Upsample"): _upsample,
}  # fmt: skip
