"""The graphs of the micro-benchmarks (engines/cost/probes.py): equal nodes beside each other, on random data."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from engines.cost.probes import (
    BINARY,
    CHAIN,
    CONVOLUTIONS,
    COPIES,
    COPY,
    GAP,
    KINDS,
    LAUNCH,
    LAYOUTS,
    MOVED,
    MOVERS,
    READ,
    ROWS,
    TIMES,
    UNARY,
    VIEWS,
    WAKE,
    WAKES,
    Point,
)

# Elements of all weights of a product's probe that streams them: 64 MiB, more than a core's own caches and its share of
# a common one hold, and more pages than it keeps the addresses of.
WEIGHTS = 1 << 24
# Of the random values, which begin again then: more than the branch prediction learns by heart. Kernels for 16 bits
# branch by a value's sign, and look much faster on some thousand values over and over.
DISTINCT = 1 << 18
BLOCK = 64  # group of a blocked weight
_APART = 1 << 24  # bytes of different data that are moved


def build(key: str, point: Point, copies: int | None = None) -> tuple[bytes, dict[str, np.ndarray], int, int]:
    """A serialised graph of equal nodes for this grid point, its feeds, how many nodes it has, and how many of Shape.

    Shape reads every output, so that the next node finds the buffer free: what nobody reads keeps its own.
    """
    from onnx import TensorProto, helper, numpy_helper

    kind, variant, types = (*key.split("|"), "")[:3]
    copies = _copies(key, point) if copies is None else copies
    probe = _Probe(types.split(">")[0] or "FLOAT")
    _maker(kind)(probe, kind, variant, types, point, copies)
    count = len(probe.nodes)
    four_bit = kind == "QuantizeLinear" and types.endswith("INT4")  # Shape does not read these
    if kind not in VIEWS and key not in (LAUNCH, MOVERS) and not four_bit:
        probe.nodes = [each for node in probe.nodes for each in (node, *(
            helper.make_node("Shape", [name], [f"{name}_read"]) for name in node.output))]  # fmt: skip
    probe.nodes.append(helper.make_node("Shape", [next(iter(probe.feeds))], ["done"]))  # an output of next to no cost
    graph = helper.make_graph(
        probe.nodes, "probe",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
         for n, v in probe.feeds.items()],
        [helper.make_tensor_value_info("done", TensorProto.INT64, None)],
        [numpy_helper.from_array(v, n) for n, v in probe.constants.items()] + probe.protos,
    )  # fmt: skip
    opsets = [("", 21), ("com.microsoft", 1), ("com.microsoft.nchwc", 1)]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=10)
    return model.SerializeToString(), probe.feeds, count, len(probe.nodes) - 1 - count


def _copies(key: str, point: Point) -> int:
    """Many of small nodes, so that what surrounds them is small; of products no more weights than a cache holds."""
    kind, variant = key.split("|")[:2]
    if key in (LAUNCH, MOVERS):
        return TIMES
    if key in (WAKE, GAP):
        return WAKES
    if key in (READ, COPY):
        return 4 if point[0] <= MOVED[0] else 1
    if variant == "streamed":
        return max(1, min(256, WEIGHTS // (point[1] * point[2])))
    if kind == "product":
        return max(1, min(16, (1 << 17) // (point[1] * point[2])))
    if kind in CONVOLUTIONS:
        return 2
    return 16 if point[0] <= 1 << 14 else 3 if point[0] <= 1 << 21 else 1


@lru_cache(1)
def _pattern() -> np.ndarray:
    return np.random.default_rng(0).random(DISTINCT + 3, np.float32) * 0.9 + 0.05  # no row begins like another


class _Probe:
    """The parts of a probe's graph. Random values, always the same ones."""

    def __init__(self, dtype: str) -> None:
        from onnx import TensorProto, helper

        self.dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype))
        self.nodes: list[Any] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.protos: list[Any] = []
        self.pattern = _pattern()

    def values(self, shape: Point, dtype: Any = None, signed: bool = False) -> np.ndarray:
        """Positive numbers below 1, or of both signs below a half, or ones for integers."""
        dtype = dtype or self.dtype
        if np.dtype(dtype).kind in "iub":
            return np.ones(shape, dtype)
        return np.resize(self.pattern - 0.5 if signed else self.pattern, shape).astype(dtype)

    def feed(self, name: str, shape: Point, dtype: Any = None, signed: bool = False) -> str:
        self.feeds[name] = self.values(shape, dtype, signed)
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def node(self, title: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> None:
        from onnx import helper

        domain, _, kind = title.rpartition(".")
        names = [f"y{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))


Maker = Callable[[_Probe, str, str, str, Point, int], None]


def _maker(kind: str) -> Maker:
    makers: list[tuple[Any, Maker]] = [
        (VIEWS, _make_view), (UNARY, _make_unary), (BINARY, _make_binary), (ROWS, _make_rows), (COPIES, _make_copy),
        (LAYOUTS, _make_layout), (CONVOLUTIONS, _make_convolution), ({"product"}, _make_product),
        ({"Cast"}, _make_cast), ({"launch", "movers"}, _make_chain), ({"read", "copy"}, _make_moving),
        ({"wake", "gap"}, _make_waking),
        ({"QuantizeLinear", "DequantizeLinear"}, _make_qdq),
    ]  # fmt: skip
    return next(make for kinds, make in makers if kind in kinds)


def _rows(point: Point) -> Point:
    """Total and inner size as [rows, inner]."""
    return max(1, point[0] // point[1]), point[1]


def _make_chain(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    """A tiny node of every kind: no neighbour's code is of use. Different data are moved before each."""
    each = point[0] // 8
    moved = [p.feed(f"moved{i}", (each,)) for i in range(min(_APART // (4 * each), copies * KINDS))] if each else []
    x = p.feed("x", (4, 4))
    y, c = p.feed("y", (4, 4)), p.feed("c", (4, 4), np.bool_)
    ints = {name: p.constant(name, np.array(v, np.int64)) for name, v in
            {"zero": [0], "one": [1], "last": [-1], "shape": [4, 4]}.items()}  # fmt: skip
    given: dict[str, list[str]] = {
        "Reshape": [x, ints["shape"]], "Slice": [x, ints["zero"], ints["one"], ints["one"]],
        "Unsqueeze": [x, ints["zero"]], "Gather": [x, ints["zero"]], "Expand": [x, ints["shape"]],
        "Where": [c, x, y], "ReduceMax": [x, ints["last"]],
        "LayerNormalization": [x, p.constant("gamma", p.values((4,)))],
    }  # fmt: skip
    binary = {"Add", "Mul", "Sub", "Div", "Max", "Min", "Concat", "MatMul"}
    extra: dict[str, dict[str, Any]] = {
        "Concat": {"axis": 0}, "Split": {"num_outputs": 2}, "Cast": {"to": 10}, "Transpose": {"perm": [1, 0]}
    }  # fmt: skip
    for i, each_kind in enumerate(CHAIN * copies):
        if moved:
            p.node("Neg", [moved[i % len(moved)]])
        if kind == "launch":
            inputs = given.get(each_kind, [x, y] if each_kind in binary else [x])
            p.node(each_kind, inputs, 2 if each_kind == "Split" else 1, **extra.get(each_kind, {}))


def _make_moving(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    x = p.feed("x", (point[0] // 4,))
    for _ in range(copies):
        p.node(*(("ReduceMax", [x]) if kind == "read" else ("Neg", [x])))


def _make_waking(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    x, a, b = p.feed("x", (1 << 13,), signed=True), p.feed("a", (64, 64)), p.constant("b", p.values((64, 64)))
    for _ in range(copies):
        for i in range(point[0]):
            p.node(("Neg", "Sigmoid")[i % 2], [x])
        if kind == "wake":
            p.node("MatMul", [a, b])


def _make_view(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    x = p.feed("x", (1, 16))
    extra = {"Reshape": [-1], "Squeeze": [0], "Unsqueeze": [0]}.get(kind)
    more = [p.constant("more", np.array(extra, np.int64))] if extra is not None else []
    for _ in range(copies):
        p.node(kind, [x, *more])


def _make_unary(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    x = p.feed("x", (point[0],), signed=kind not in ("Sqrt", "Log"))
    ends = {"low": -1, "high": 1} if kind == "Clip" else {}
    more = [p.constant(n, np.array(v, p.dtype)) for n, v in ends.items()]
    attributes: dict[str, Any] = {"approximate": "tanh"} if kind == "Gelu" else {}
    for _ in range(copies):
        p.node(kind, [x, *more], **attributes)


def _make_binary(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    shape = _rows(point) if len(point) == 2 else (1, point[0])
    other = {"same": shape, "scalar": (), "row": (1, shape[1]), "column": (shape[0], 1)}[variant]
    x = p.feed("x", shape, signed=kind != "Pow")
    if kind == "com.microsoft.BiasGelu":
        other = shape[1:]
    # A cube is the dearer one of the powers that have a loop of their own.
    y = p.constant("y", np.array(3 if kind == "Pow" else 2, p.dtype)) if variant == "scalar" else p.feed("y", other)
    inputs = [p.feed("c", other or (1,), np.bool_), y, x] if kind == "Where" else [x, y]
    for _ in range(copies):
        p.node(kind, inputs)


def _make_rows(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    rows, inner = _rows(point)
    shape = (1, rows, inner) if kind == "InstanceNormalization" else (rows, inner)
    inputs = [p.feed("x", shape, signed=True)]
    attributes: dict[str, Any] = {}
    if kind.startswith("Reduce"):
        inputs.append(p.constant("axes", np.array([-1], np.int64)))
    elif kind == "ArgMax":
        attributes["axis"] = -1
    elif kind == "com.microsoft.SkipLayerNormalization":
        inputs += [p.feed("skip", shape), p.constant("gamma", p.values((inner,)))]
    elif kind == "InstanceNormalization":
        inputs += [p.constant(n, p.values((rows,))) for n in ("scale", "bias")]
    elif kind.endswith("Normalization"):
        inputs.append(p.constant("scale", p.values((inner,))))
    for _ in range(copies):
        p.node(kind, inputs, **attributes)


def _make_copy(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    rows, inner = _rows(point)
    halves = max(1, inner // 2)
    if kind == "Transpose":
        outer = 1 << (rows.bit_length() // 2)
        x = p.feed("x", (outer, max(1, rows // outer), inner))
        for _ in range(copies):
            p.node(kind, [x], perm=[1, 0, 2] if variant == "kept" else [0, 2, 1])
        return
    if kind == "Gather":
        x = p.feed("x", (rows, inner))
        index = p.constant("index", np.arange(rows, dtype=np.int64))
        for _ in range(copies):
            p.node(kind, [x, index], axis=0)
        return
    if kind == "Concat":
        x = p.feed("x", (max(1, rows // 2), inner))
        for _ in range(copies):
            p.node(kind, [x, x], axis=1)
        return
    x = p.feed(
        "x", (rows, 1) if kind in ("Expand", "Tile") else (rows, 2 * inner if kind in ("Split", "Slice") else inner)
    )
    shapes = {
        "Split": [], "Slice": [[0], [inner], [1]], "Expand": [[rows, inner]], "Tile": [[1, inner]],
        "Pad": [[0, 0, 0, halves]],
    }[kind]  # fmt: skip
    more = [p.constant(f"c{i}", np.array(v, np.int64)) for i, v in enumerate(shapes)]
    for _ in range(copies):
        split = {"axis": 1, "num_outputs": 2} if kind == "Split" else {}
        p.node(kind, [x, *more], 2 if kind == "Split" else 1, **split)


def _make_cast(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    from onnx import TensorProto

    x = p.feed("x", (point[0],), signed=True)
    for _ in range(copies):
        p.node("Cast", [x], to=getattr(TensorProto, types.split(">")[1]))


def _make_qdq(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    """Scales per row, or per block of 64 along the row; codes of a weight are a constant."""
    from onnx import TensorProto, helper

    rows, inner = _rows(point)
    code = getattr(TensorProto, types)
    blocked = variant == "block" and inner >= BLOCK
    scale = p.feed("scale", (rows, inner // BLOCK) if blocked else (rows,), np.float32)
    attributes = {"axis": 1, "block_size": BLOCK} if blocked else {"axis": 0}
    if kind == "QuantizeLinear":
        x = p.feed("x", (rows, inner), np.float32, signed=True)
        attributes["output_dtype"] = code
    else:
        count = -(-rows * inner // 2) if types in ("INT4", "UINT4") else rows * inner
        x = "codes"
        p.protos.append(helper.make_tensor(x, code, (rows, inner), bytes(count), raw=True))
    for _ in range(copies):
        p.node(kind, [x, scale], **attributes)


def _make_product(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    m, k, n = point
    a = p.feed("a", (m, k), signed=True)
    turned = variant.endswith("T")
    for i in range(copies):
        shape = (n, k) if turned else (k, n)
        b = f"b{i}"
        if variant.startswith("computed"):
            b = p.feed(f"b{i % 2}", shape)
        else:
            weight = p.values(shape)
            weight.flat[0] = (i + 1) / copies  # onnxruntime keeps equal weights once
            p.constant(b, weight)
        if turned:
            p.node("com.microsoft.FusedMatMul", [a, b], transB=1)
        else:
            p.node("MatMul", [a, b])


def _make_convolution(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    pixels, into, out = point
    height, kernel = math.isqrt(pixels), int(variant)
    x = p.feed("x", (1, into, height, pixels // height))
    for i in range(copies):
        w = p.constant(f"w{i}", p.values((out, into, kernel, kernel)))
        p.node(kind, [x, w], kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4, strides=[1, 1])


def _make_layout(p: _Probe, kind: str, variant: str, types: str, point: Point, copies: int) -> None:
    side = max(1, math.isqrt(point[0] // 16))
    attributes: dict[str, Any] = {"channels": 16} if kind.endswith("ReorderOutput") else {}
    scales = (1, 1, 2, 2)
    if kind.endswith("Upsample") or kind == "Resize":
        side = max(1, side // 2)
    x = p.feed("x", (1, 16, side, side))
    more: list[str] = []
    if kind.endswith("Upsample"):
        attributes["scales"] = list(scales)
    elif kind == "Resize":
        more = ["", p.constant("scales", np.array(scales, np.float32))]
        attributes.update(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    for _ in range(copies):
        p.node(kind, [x, *more], **attributes)
