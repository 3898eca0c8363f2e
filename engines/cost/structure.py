"""What onnxruntime takes for a graph beside weights and activations: nodes, kernels, plans, and code that they touch.

`python -m engines.cost.structure MODEL` prints the bytes by which a fresh process grows that runs a graph; chains of
tiny nodes give what a node costs. Nodes whose tensors have 16 bits cost three times as much: the CPU provider has no
kernels for them, so casts come and go around each of them while a graph is opened, and the C library keeps the memory
that they took.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.apart import Apart
from engines.cost.graph import Shape, read

HALVES = frozenset({"FLOAT16", "BFLOAT16"})
# Of the chains: operators that neither folding nor fusing takes away.
KINDS = (
    "Neg", "Abs", "Sqrt", "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Relu", "Floor", "Ceil", "Round", "Softmax", "Elu",
    "Add", "Sub", "Mul", "Div", "Min", "Max",
)  # fmt: skip
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max"})
LONG = 40  # times all kinds in the long chains


@dataclass(frozen=True)
class Nodes:
    """What a file asks onnxruntime to hold beside what it computes with: nodes with 16-bit tensors, `other` ones (those
    of function bodies, which compute in float32, by their calls), and the operators; `kept_bytes` of 16-bit weights,
    which it widens and does not give back."""

    halves: int
    other: int
    kinds: frozenset[str]
    kept_bytes: int


@dataclass(frozen=True)
class Structure:
    """Bytes: `session` of the first session, for onnxruntime's own pages; of a node with 16-bit tensors and of another
    one; and `kind` of each operator, for its code."""

    session: float
    half: float
    other: float
    kind: float

    def of(self, nodes: Nodes) -> int:
        """Bytes of a graph's nodes, without their code."""
        return int(nodes.halves * self.half + nodes.other * self.other)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def nodes(model: Path, shapes: Mapping[str, Shape]) -> Nodes:
    """Of the .onnx file as it is opened. Raises what `engines.cost.graph.read` raises."""
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    bodies = {(f.domain, f.name, f.overload): f for f in proto.functions}
    called = [b for n in proto.graph.node if (b := bodies.get((n.domain, n.op_type, n.overload))) is not None]
    names, graph = {(f.domain, f.name) for f in proto.functions}, read(model, shapes)
    own = [op for op in graph.ops if (op.domain, op.kind) not in names]
    halves = sum(any(t is not None and t.dtype in HALVES for t in (*op.inputs, *op.outputs)) for op in own)
    inner = sum(len(b.node) for b in called)
    kinds = {op.kind for op in own} | {n.op_type for b in called for n in b.node}
    kept = sum(w.nbytes for w in graph.weights if w.dtype in HALVES)
    return Nodes(halves, len(own) - halves + inner, frozenset(kinds), kept)


def measure() -> Structure:
    """By chains in processes of their own; some seconds."""
    with tempfile.TemporaryDirectory() as directory:

        def grown(copies: int, half: bool, kinds: tuple[str, ...] = KINDS) -> int:
            path = Path(directory) / "chain.onnx"
            path.write_bytes(chain(kinds, copies, half))
            with Apart("engines.cost.structure", [str(path)], "Measuring a session's memory") as apart:
                return int(apart.result()["bytes"])

        session, more = grown(1, False, KINDS[:1]), len(KINDS) * (LONG - 1)
        short = {half: grown(1, half) for half in (False, True)}
        each = {half: max(grown(LONG, half) - short[half], 0) / more for half in (False, True)}
    kind = (short[False] - session) / (len(KINDS) - 1) - each[False]
    return Structure(session, each[True], each[False], max(kind, 0.0))


def chain(kinds: tuple[str, ...], copies: int, half: bool) -> bytes:
    """A model of tiny nodes one behind the other, on 16 numbers of 16 or 32 bits."""
    import onnx
    from onnx import helper

    made, last = [], "x"
    for i in range(copies):
        for kind in kinds:
            inputs = [last, "x"] if kind in _BINARY else [last]
            last = f"{kind}_{i}"
            made.append(helper.make_node(kind, inputs, [last], name=f"blocks.{i}.{kind}"))
    dtype = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, dtype, [16]) for name in ("x", last))
    graph = helper.make_graph(made, "chain", [x], [y])
    opset = helper.make_opsetid("", 20)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString())


def grown_bytes(model: Path, feeds: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by which this process grows that opens the graph and runs it three times: `bytes` at its peak, and
    `opened` before the first run. Call it in a fresh process."""
    import onnxruntime  # noqa: F401  (its pages are not the graph's)

    from engines.memory import resident_bytes
    from engines.session import Session

    before = resident_bytes("VmRSS")
    session = Session(model, "measured", 1, check_finite=False).open()
    opened = resident_bytes("VmRSS")
    for _ in range(3):
        session.run(feeds)
    return {"bytes": resident_bytes("VmHWM") - before, "opened": opened - before}


def main() -> None:
    import numpy as np

    model, *given = sys.argv[1:]
    feeds = dict(np.load(given[0])) if given else {"x": np.ones(16, np.float32)}
    print(json.dumps(grown_bytes(Path(model), feeds)))


if __name__ == "__main__":
    main()
