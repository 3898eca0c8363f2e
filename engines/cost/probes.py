"""Micro-benchmarks of onnxruntime's CPU kernels: which one stands for a node, at which sizes it is measured.

A `Class` names a kind of work (`key`) and the node's size in it (`point`). Every key has a grid of generic sizes: no
size comes from a model. The graphs that are timed: engines/cost/probe_graphs.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from engines.cost.graph import Op, Tensor

Point = tuple[int, ...]

UNARY = frozenset({
    "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Relu", "Clip", "Not",
    "Floor", "Ceil", "Round", "IsNaN", "IsInf", "Gelu", "com.microsoft.QuickGelu", "com.microsoft.FastGelu",
    "com.microsoft.Gelu",
})  # fmt: skip
BINARY = frozenset({
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
    "And", "Or", "Where", "Sum", "com.microsoft.BiasGelu",
})  # fmt: skip
ROWS = frozenset({
    "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "Softmax", "LayerNormalization", "InstanceNormalization",
    "SimplifiedLayerNormalization", "com.microsoft.SkipLayerNormalization", "ArgMax", "RMSNormalization",
})  # fmt: skip
COPIES = frozenset({"Transpose", "Concat", "Split", "Slice", "Gather", "Expand", "Pad", "Tile"})
LAYOUTS = frozenset({"com.microsoft.nchwc.ReorderInput", "com.microsoft.nchwc.ReorderOutput",
                     "com.microsoft.nchwc.Upsample", "Resize"})  # fmt: skip
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape"})
PRODUCTS = frozenset({"MatMul", "Gemm", "com.microsoft.FusedMatMul"})
CONVOLUTIONS = frozenset({"Conv", "com.microsoft.nchwc.Conv", "com.microsoft.FusedConv"})
TINY = 64  # elements up to which a node costs its launch alone, whatever its type

ELEMENTS = (16, 1024, 1 << 14, 1 << 16, 1 << 18, 1 << 22)
INNER = (1, 16, 256)
LEFT_ROWS, DEPTH, COLUMNS = (1, 16, 64, 256), (16, 64, 256, 2048), (16, 64, 256, 2048)
PIXELS, CHANNELS = (64, 1024, 4096), (16, 32, 64, 256)
MOVED = (1 << 17, 1 << 20, 1 << 23, 1 << 26, 1 << 28)
STEPS = (2, 5)  # of the images whose host work is measured (engines/cost/host.py)


@dataclass(frozen=True)
class Class:
    """`key` "kind|variant|types", `point` the node's size on the key's axes; `times` such units make the node."""

    key: str
    point: Point
    times: int = 1


def axes(key: str) -> tuple[Point, ...]:
    """Grid sizes along every axis of the key's `point`."""
    kind, variant = key.split("|")[:2]
    if key in (LAUNCH, MOVERS):
        return (BETWEEN,)
    if key in (WAKE, GAP):
        return (OTHERS,)
    if kind == "host":
        return (STEPS,)
    if key == CALL:
        return ((0, 1),)
    if key in (READ, COPY):
        return (MOVED,)
    if kind == "product":
        return LEFT_ROWS, DEPTH, COLUMNS
    if kind in CONVOLUTIONS:
        return PIXELS, CHANNELS, CHANNELS
    if kind in VIEWS:
        return ((16,),)
    if kind in ROWS or kind in COPIES or kind.endswith("izeLinear") or variant in ("row", "column"):
        return ELEMENTS, INNER
    return (ELEMENTS,)


def classify(op: Op) -> Class | None:
    """What stands for the node; None for one that no micro-benchmark stands for, or of unknown shape."""
    if not op.known or not op.outputs:
        return None
    kind, out = op.title, op.outputs[0]
    given = [t for t in op.inputs if t is not None]
    if kind in VIEWS:
        return Class(f"{kind}|", (16,))
    size = max(t.elements for t in (*given, *op.outputs))
    dtype = "FLOAT" if size <= TINY or not given else given[-1 if kind == "Where" else 0].dtype
    if kind in PRODUCTS:
        return _product(op)
    if kind in CONVOLUTIONS:
        return _convolution(op)
    if kind == "Cast":
        types = ("FLOAT", "INT64") if size <= TINY else (given[0].dtype, out.dtype)
        return Class(f"Cast||{types[0]}>{types[1]}", (size,))
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        codes = (given[0] if kind == "DequantizeLinear" else out).dtype
        blocked = "block" if op.attributes.get("block_size") else "row"
        return Class(f"{kind}|{blocked}|{codes}", (size, _last(given[0])))
    if kind in UNARY:
        return Class(f"{kind}||{dtype}", (size,))
    if kind in BINARY:
        variant, inner = _broadcast(given)
        more = len(given) - 1 if kind in ("Sum", "Min", "Max") else 1
        return Class(f"{kind}|{variant}|{dtype}", (size, inner) if variant in ("row", "column") else (size,), more)
    if kind in ROWS:
        inner = math.prod((given[0].shape or (1,))[2:]) if kind == "InstanceNormalization" else _reduced(op, given[0])
        return Class(f"{kind}||{dtype}", (size, max(1, inner)))
    if kind in COPIES:
        return Class(f"{kind}|{_turned(op)}|{dtype}", (out.elements * len(op.outputs), _block(op)))
    if kind in LAYOUTS:
        return Class(f"{kind}||{dtype}", (out.elements,))
    return None


def streamed(work: Class) -> Class | None:
    """The same product with its weight from outside the cache; None where nothing of that kind is measured."""
    kind, variant, types = (*work.key.split("|"), "")[:3]
    if kind != "product" or variant != "constant":
        return None
    return replace(work, key=f"product|streamed|{types}")


def is_wide(work: Class) -> bool:
    """Whether the kernel computes in the widest vectors: products and convolutions."""
    kind = work.key.split("|")[0]
    return kind == "product" or kind in CONVOLUTIONS


def _last(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.shape else 1


def _reduced(op: Op, x: Tensor) -> int:
    """Elements that one output of a reduction over the last axis comes from."""
    out = op.outputs[0].elements
    return _last(x) if op.kind.endswith(("Normalization", "Softmax")) else max(1, x.elements // max(1, out))


def _broadcast(given: list[Tensor]) -> tuple[str, int]:
    """How the smaller operand repeats: ("same" | "scalar" | "row" | "column", length of a contiguous run)."""
    big = max(given, key=lambda t: t.elements)
    small = min(given, key=lambda t: t.elements)
    if small.elements == big.elements:
        return "same", 1
    if small.elements == 1:
        return "scalar", 1
    assert big.shape is not None and small.shape is not None
    aligned = (1,) * (len(big.shape) - len(small.shape)) + small.shape
    pairs = list(zip(reversed(big.shape), reversed(aligned), strict=True))
    while pairs and pairs[0][0] == 1:
        pairs.pop(0)
    column = bool(pairs) and pairs[0][1] == 1
    run = 1
    for size, other in pairs:
        if (other == 1) != column and size != 1:
            break
        run *= size
    return ("column" if column else "row"), run


def _turned(op: Op) -> str:
    """For a transposition: "turned" where the last axis moves, so that nothing is copied in runs."""
    if op.kind != "Transpose":
        return ""
    perm = op.attributes.get("perm")
    rank = len(op.outputs[0].shape or ())
    return "turned" if (perm[-1] if perm else 0) != rank - 1 else "kept"


def _block(op: Op) -> int:
    """Contiguous elements that a copy moves at once."""
    x = next((t for t in op.inputs if t is not None), None)
    assert x is not None and x.shape is not None
    small = min((t for t in (x, *op.outputs) if t.elements), key=lambda t: t.elements, default=x)
    shape = small.shape or (1,)
    if op.kind in ("Concat", "Split", "Gather"):
        axis = int(op.attributes.get("axis", 0)) % max(1, len(x.shape))
        return max(1, math.prod(x.shape[axis + 1 :] if op.kind == "Gather" else shape[axis:]))
    return max(1, shape[-1] if shape else 1)


def _product(op: Op) -> Class:
    from engines.cost.operations import work

    counted = work(op)
    assert counted is not None
    product = counted.products[0]
    right = op.inputs[1]
    assert right is not None
    turned = "T" if op.attributes.get("transB") and not right.stored else ""
    side = "constant" if right.stored else "computed"  # onnxruntime packs initializers when it opens the graph
    return Class(f"product|{side}{turned}|{product.left}", (product.m, product.k, product.n), product.batch)


def _convolution(op: Op) -> Class:
    from engines.cost.operations import work

    counted = work(op)
    assert counted is not None
    product, w = counted.products[0], op.inputs[1]
    assert w is not None and w.shape is not None
    side = w.shape[-1]
    return Class(f"{op.title}|{side}|{product.left}", (product.m, product.k // side**2, product.n), product.batch)


# Keys of what is no single node


EMPTY = "Shape|"  # with no copies: what a run costs before its first node
# A chain of tiny nodes of many kinds, with a node that reads and writes so many bytes before each of them, and those
# nodes alone. The difference tells what a node costs before its first element: the more was moved since a kernel ran
# last, the farther away are its code and what onnxruntime holds of the node.
LAUNCH, MOVERS = "launch|", "movers|"
BETWEEN = (0, 1 << 13, 1 << 15, 1 << 17, 1 << 19)
TIMES = 4  # that the chain goes through all kinds
# A small product after so many elementwise nodes, and those alone: the widest vector units slow down what runs beside
# them, and take a while to be ready again.
WAKE, GAP = "wake|", "gap|"
OTHERS = (0, 4, 16, 64)
WAKES = 8  # products in such a graph
CALL = "call|"  # engines/session.py's call of a graph without a node
HOT, COLD = (0,), (1,)  # with all at hand, and after other data have taken its place
# The largest number of so many bytes; their negation, which writes as many. With the stores of onnxruntime's kernels:
# a plain copy of such a size goes past the caches and is twice as fast.
READ, COPY = "read|", "copy|"
CHAIN = ("Add", "Neg", "Transpose", "Mul", "Softmax", "Reshape", "Sigmoid", "Concat", "Sub", "ReduceMax", "Cast",
         "Slice", "Tanh", "Div", "Unsqueeze", "Sqrt", "LayerNormalization", "Split", "Max", "Exp", "Gather", "Min",
         "Abs", "MatMul", "Expand", "Where")  # fmt: skip
KINDS = len(CHAIN)
