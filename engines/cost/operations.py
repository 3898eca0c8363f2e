"""What one node computes and moves, counted from its shapes.

An operation is one multiplication or addition (a multiply-add is two) or one elementary function of one element. Bytes
are those of the tensors that a node reads and writes once each: what a cache keeps is the business of who asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from engines.cost.graph import Op, Tensor, bits

# Elementary operations per element. Composite operators as they decompose: softmax is maximum, subtraction,
# exponential, sum and division; a layer norm mean (1), variance (3), normalisation (2) and affine (2).
PER_ELEMENT = {
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Min", "Max", "Neg", "Abs", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Sin",
         "Cos", "Tanh", "Sigmoid", "Erf", "Relu", "Where", "Equal", "Less", "LessOrEqual", "Greater", "And", "Or",
         "GreaterOrEqual", "Not", "Floor", "Ceil", "Round", "Sign", "Mod", "IsNaN", "IsInf", "BiasAdd", "LeakyRelu"),
        1,
    ),
    "Sum": 1, "Clip": 2, "HardSwish": 4, "Elu": 3, "Softplus": 3, "Swish": 2, "Mish": 5, "HardSigmoid": 3,
    "Gelu": 8, "FastGelu": 8, "BiasGelu": 9, "QuickGelu": 3, "RotaryEmbedding": 3,
    "Softmax": 5, "BiasSoftmax": 6, "LogSoftmax": 6,
    "LayerNormalization": 8, "InstanceNormalization": 8, "GroupNormalization": 8, "GroupNorm": 8,
    "BatchNormalization": 2, "RMSNormalization": 4, "SimplifiedLayerNormalization": 4, "LpNormalization": 4,
    "SkipLayerNormalization": 9, "SkipSimplifiedLayerNormalization": 5,
    "QuantizeLinear": 3, "DequantizeLinear": 2, "DynamicQuantizeLinear": 5,
    "ReduceSum": 1, "ReduceMax": 1, "ReduceMin": 1, "ReduceMean": 1, "ReduceProd": 1, "ReduceL2": 2,
    "ReduceSumSquare": 2, "ArgMax": 1, "ArgMin": 1, "CumSum": 1, "MaxPool": 1, "AveragePool": 1,
    "GlobalAveragePool": 1, "TopK": 1,
}  # fmt: skip
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape", "Size"})
COPIES = frozenset({
    "Transpose", "Concat", "Split", "Slice", "Pad", "Expand", "Tile", "Cast", "CastLike", "Resize", "Upsample",
    "ConstantOfShape", "Constant", "Range", "DepthToSpace", "SpaceToDepth", "ReorderInput", "ReorderOutput", "Trilu",
    "ScatterND", "EyeLike", "NonZero",
})  # fmt: skip
LOOKUPS = frozenset({"Gather", "GatherND", "GatherElements"})


@dataclass(frozen=True)
class Product:
    """`batch` matrix products [m, k] x [k, n]. `left` and `right`: ONNX's names of the types that are multiplied."""

    batch: int
    m: int
    k: int
    n: int
    left: str
    right: str

    @property
    def operations(self) -> int:
        """Two per multiply-add."""
        return 2 * self.batch * self.m * self.k * self.n


@dataclass(frozen=True)
class Work:
    """`products`; `elementwise` operations beside them; bytes `read` and `written`; whether it is only a `view`."""

    products: tuple[Product, ...] = ()
    elementwise: int = 0
    read: int = 0
    written: int = 0
    view: bool = False

    @property
    def operations(self) -> int:
        """All operations of the node."""
        return sum(p.operations for p in self.products) + self.elementwise

    @property
    def nbytes(self) -> int:
        """All bytes that it moves."""
        return self.read + self.written


def work(op: Op) -> Work | None:
    """What the node does; None for an operator that is not counted here, and where a shape is unknown."""
    if not op.known:
        return None
    if op.kind in VIEWS:
        return Work(view=True)
    read, written = sum(t.nbytes for t in op.inputs if t), sum(t.nbytes for t in op.outputs)
    if op.kind in _PRODUCTS:
        products, elementwise = _PRODUCTS[op.kind](op)
        return Work(products, elementwise, read, written)
    if op.kind in COPIES:
        return Work(read=min(read, written) if op.kind == "Slice" else read, written=written)
    if op.kind in LOOKUPS:
        indices = op.inputs[1]
        assert indices is not None
        return Work(read=written + indices.nbytes, written=written)
    if op.kind in PER_ELEMENT:
        size = max(t.elements for t in (*op.inputs, *op.outputs) if t)
        more = max(1, len(op.inputs) - 1) if op.kind in ("Sum", "Min", "Max") else 1
        return Work(elementwise=PER_ELEMENT[op.kind] * size * more, read=read, written=written)
    return None


Counted = tuple[tuple[Product, ...], int]


def _given(op: Op, index: int) -> Tensor:
    tensor = op.inputs[index]
    assert tensor is not None and tensor.shape is not None
    return tensor


def _dims(tensor: Tensor) -> tuple[int, ...]:
    assert tensor.shape is not None
    return tensor.shape


def _matmul(op: Op) -> Counted:
    a, b = _given(op, 0), _given(op, 1)
    left, right = _dims(a), _dims(b)
    left = (1, *left) if len(left) == 1 else left
    right = (*right, 1) if len(right) == 1 else right
    m, k = (left[-1], left[-2]) if op.attributes.get("transA") else (left[-2], left[-1])
    n = right[-2] if op.attributes.get("transB") else right[-1]
    if math.prod(right[:-2]) == 1:  # one right side for all: the rows of every batch are one product
        return (Product(1, math.prod(left[:-2]) * m, k, n, a.dtype, b.dtype),), 0
    rank = max(len(left), len(right)) - 2
    batches = [(1,) * (rank - len(s) + 2) + s[:-2] for s in (left, right)]
    batch = math.prod(max(pair) for pair in zip(*batches, strict=True))
    return (Product(batch, m, k, n, a.dtype, b.dtype),), 0


def _gemm(op: Op) -> Counted:
    products, _ = _matmul(op)
    bias = len(op.inputs) > 2 and op.inputs[2] is not None
    return products, op.outputs[0].elements if bias else 0


def _matmul_nbits(op: Op) -> Counted:
    x, k, n = _given(op, 0), int(op.attributes["K"]), int(op.attributes["N"])
    return (Product(1, x.elements // k, k, n, x.dtype, f"INT{op.attributes.get('bits', 4)}"),), 0


def _convolution(op: Op) -> Counted:
    x, w = _given(op, 0), _given(op, 1)
    groups = int(op.attributes.get("group", 1))
    out = op.outputs[0].elements
    columns = _dims(w)[0]
    k = math.prod(_dims(w)[1:])
    bias = len(op.inputs) > 2 and op.inputs[2] is not None
    return (Product(groups, out // columns, k, columns // groups, x.dtype, w.dtype),), out if bias else 0


def _conv_transpose(op: Op) -> Counted:
    x, w = _given(op, 0), _given(op, 1)
    channels, groups = _dims(w)[0], int(op.attributes.get("group", 1))
    k, n = channels // groups, math.prod(_dims(w)[1:])
    return (Product(groups, x.elements // channels, k, n, x.dtype, w.dtype),), 0


def _attention(op: Op) -> Counted:
    """q [B, H, L, D] and k, v alike, or [B, L, H·D] with the number of heads as an attribute."""
    q, k, v = (_given(op, i) for i in range(3))
    if len(_dims(q)) == 4:
        batch, heads, length, width = _dims(q)
        keys, value_width = _dims(k)[2], _dims(v)[3]
    else:
        heads = int(op.attributes.get("num_heads") or op.attributes["q_num_heads"])
        batch, length, total = _dims(q)
        width, keys, value_width = total // heads, _dims(k)[1], _dims(v)[2] // heads
    scores = Product(batch * heads, length, width, keys, q.dtype, k.dtype)
    return (scores, Product(batch * heads, length, keys, value_width, q.dtype, v.dtype)), (
        PER_ELEMENT["Softmax"] * batch * heads * length * keys
    )


def _svdq_linear(op: Op) -> Counted:
    """K padded to whole groups, as it is multiplied; the rank as it is stored. Quantising costs six per element:
    shift, smoothing, maximum, division, rounding, clipping."""
    x, names = _given(op, 0), len(op.inputs)
    group, act_bits = int(op.attributes["group_size"]), int(op.attributes["act_bits"])
    k, n = _dims(x)[-1], _dims(op.outputs[0])[-1]
    m, padded = x.elements // k, -(-k // group) * group
    left = x.dtype if act_bits == 16 else f"{'INT' if op.attributes.get('act_signed', 1) else 'UINT'}{act_bits}"
    products = [Product(1, m, padded, n, left, "INT4")]
    if names == 7:
        rank = svdq_rank(op)
        products += [Product(1, m, k, rank, x.dtype, x.dtype), Product(1, m, rank, n, x.dtype, x.dtype)]
    activation = {b"gelu_tanh": PER_ELEMENT["Gelu"], b"silu": 2}.get(op.attributes.get("activation", b"none"), 0)
    return tuple(products), m * k * (6 if act_bits < 16 else 1) + m * n * (1 + activation)


def svdq_rank(op: Op) -> int:
    """Rank of an SvdqLinear's branch as stored; 0 without one. Portable nodes carry it as down's width."""
    if len(op.inputs) < 7:
        return 0
    down = _dims(_given(op, 4))
    return int(op.attributes["rank"]) if "n" in op.attributes else down[1]


_PRODUCTS: dict[str, Callable[[Op], Counted]] = {
    "MatMul": _matmul, "FusedMatMul": _matmul, "Gemm": _gemm, "MatMulNBits": _matmul_nbits, "Conv": _convolution,
    "FusedConv": _convolution, "ConvTranspose": _conv_transpose, "Attention": _attention,
    "MultiHeadAttention": _attention, "SvdqLinear": _svdq_linear,
}  # fmt: skip


def quantised_bytes(op: Op) -> int:
    """Workspace of an SvdqLinear on a GPU, bytes: codes (4 or 8 bits), scales T[K/G, M], hidden float32[M, R]."""
    x = _given(op, 0)
    group, act_bits = int(op.attributes["group_size"]), int(op.attributes["act_bits"])
    k = _dims(x)[-1]
    m, padded = x.elements // k, -(-k // group) * group
    codes = m * padded * act_bits // 8 + m * (padded // group) * bits(x.dtype) // 8 if act_bits < 16 else 0
    return codes + 4 * m * svdq_rank(op)
