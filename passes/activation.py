"""GELU and SiLU behind a quantised linear move into it."""

from __future__ import annotations

import onnx_ir as ir

from passes.body import activated
from passes.emit import Emitter
from passes.linear import only_user
from passes.solved import Solved


class AbsorbActivation(ir.passes.InPlacePass):
    """CastLike(sum, x) → Gelu(tanh) or x·Sigmoid(x) becomes activation(sum) in float32 → CastLike(·, x).

    The activation is then rounded once, as the kernel's epilogue does it.

    1. Matches accumulators (accumulator.py) whose rounded sum has the activation as its only reader.
    2. Left alone: the erf GELU, which the op does not have, and layers that are not in `solved`.
    """

    def __init__(self, solved: Solved) -> None:
        self.solved = solved

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = {f"{name}.bias" for name in self.solved}
        modified = False
        for node in list(model.graph):
            if node.op_type == "CastLike" and _bias_name(node) in names:
                modified |= _absorb(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _bias_name(round_: ir.Node) -> str | None:
    """Name of the bias that the sum rounded by this node ends with, None where it is no such sum."""
    add = round_.inputs[0].producer() if round_.inputs[0] is not None else None
    if add is None or add.op_type != "Add" or add.inputs[1] is None:
        return None
    cast = add.inputs[1].producer()
    if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return None
    return cast.inputs[0].name


def _kind(y: ir.Value) -> tuple[str, list[ir.Node]] | None:
    """The activation that reads y and nothing else does, with its nodes."""
    node = only_user(y)
    if node is not None and node.op_type == "Gelu" and "approximate" in node.attributes:
        return ("gelu_tanh", [node]) if node.attributes["approximate"].as_string() == "tanh" else None
    uses = {use.node for use in y.uses()}
    if y.is_graph_output() or {n.op_type for n in uses} != {"Sigmoid", "Mul"} or len(uses) != 2:
        return None
    sigmoid = next(n for n in uses if n.op_type == "Sigmoid")
    mul = only_user(sigmoid.outputs[0])
    return ("silu", [mul, sigmoid]) if mul is not None and mul in uses else None


def _absorb(graph: ir.Graph, round_: ir.Node) -> bool:
    found = _kind(round_.outputs[0])
    if found is None:
        return False
    activation, nodes = found
    total, like = round_.inputs
    assert total is not None
    e = Emitter(f"{round_.name}/{activation}", round_.metadata_props.get("svdq.scope", ""))
    y = e("CastLike", activated(e, total, activation), like)
    old = nodes[0].outputs[0]
    y.type, y.shape = old.type, old.shape
    graph.insert_before(round_, e.nodes)
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    graph.remove([*nodes, round_], safe=True)
    return True
