"""What every preset starts with: dead nodes gone, names fixed, linears in their canonical form."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from passes.emit import Emitter
from passes.linear import WEIGHT


class CanonicalLinears(ir.passes.InPlacePass):
    """Rewrite every linear whose weight is an initializer "<name>.weight" to Transpose → MatMul → Add (linear.py).

    1. Gemm(x, W[N, K], b; transB=1, alpha=1, beta=1 or no b) → Transpose(W), MatMul, Add.
    2. Gemm or MatMul with anything else on the right is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type == "Gemm" and _is_linear(node):
                _split_gemm(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _is_linear(gemm: ir.Node) -> bool:
    weight, bias = gemm.inputs[1], gemm.inputs[2] if len(gemm.inputs) > 2 else None
    attribute = gemm.attributes
    alpha = attribute["alpha"].as_float() if "alpha" in attribute else 1.0
    beta = attribute["beta"].as_float() if "beta" in attribute else 1.0
    trans = [attribute[k].as_int() if k in attribute else 0 for k in ("transA", "transB")]
    return (
        weight is not None
        and weight.is_initializer()
        and (weight.name or "").endswith(WEIGHT)
        and trans == [0, 1]
        and alpha == 1.0
        and (bias is None or beta == 1.0)
    )


def _split_gemm(graph: ir.Graph, gemm: ir.Node) -> None:
    x, weight = gemm.inputs[0], gemm.inputs[1]
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    emit = Emitter(gemm.name or str(gemm.outputs[0].name), gemm.metadata_props.get("svdq.scope", ""))
    y = emit("MatMul", x, emit("Transpose", weight, perm=[1, 0]))
    if bias is not None:
        y = emit("Add", y, bias)
    replace(graph, gemm, emit.nodes, y)


def replace(graph: ir.Graph, old: ir.Node, nodes: list[ir.Node], y: ir.Value) -> None:
    """Put `nodes` where `old` (one output) stands; `y` takes over that output's name, type and uses."""
    before = old.outputs[0]
    graph.insert_before(old, nodes)
    y.name, y.type, y.shape = before.name, before.type, before.shape
    ir.convenience.replace_all_uses_with(before, y, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def clean() -> list[ir.passes.PassBase]:
    """The opening of every preset."""
    return [common.RemoveUnusedNodesPass(), CanonicalLinears(), common.NameFixPass()]
