"""A linear that reads a concatenation becomes a sum of linears."""

from __future__ import annotations

import json

import onnx_ir as ir

from passes.emit import Emitter, initializer
from passes.linear import WEIGHT, Linear, find_linears
from passes.policy import FOUR_BIT, Policy
from passes.stacked import COLUMNS, SOURCES, columns


class SplitConcatInputs(ir.passes.InPlacePass):
    """Linear(Concat(a, b, axis=-1)) → Linear(a) + Linear(b), each with its columns of the weight.

    FLUX's single blocks end in proj_out(concat(attention, gelu(mlp))): apart, the half behind the GELU can be
    quantised unsigned, and each half has its own smoothing and branch.

    1. Matches 4-bit linears whose input is a Concat on the last axis, all parts of known width.
    2. The bias goes to the first part; parts are named <name>.0, <name>.1, ...
    3. Left alone: any other axis, unknown widths, layers that are not 4-bit by policy, and concatenations that other
       nodes read too (nothing would be saved).
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for linear in find_linears(model.graph):
            widths = _widths(linear)
            if widths is not None and self.policy.scheme(linear.name) == FOUR_BIT:
                _split(model.graph, linear, widths)
                modified = True
        return ir.passes.PassResult(model, modified)


def _widths(linear: Linear) -> list[int] | None:
    concat = linear.x.producer()
    if concat is None or concat.op_type != "Concat" or len(list(linear.x.uses())) != 1:
        return None
    shape = linear.x.shape
    rank = len(shape) if shape is not None else None
    if concat.attributes["axis"].as_int() not in (-1, *(() if rank is None else (rank - 1,))):
        return None
    widths = [v.shape[-1] if v is not None and v.shape is not None else None for v in concat.inputs]
    if not all(isinstance(w, int) for w in widths) or sum(widths) != linear.k:  # type: ignore[arg-type]
        return None
    return [int(w) for w in widths]  # type: ignore[arg-type]


def _split(graph: ir.Graph, linear: Linear, widths: list[int]) -> None:
    concat = linear.x.producer()
    source = linear.weight.const_value
    assert concat is not None and source is not None
    total: ir.Value | None = None
    nodes: list[ir.Node] = []
    start = 0
    for i, (part, width) in enumerate(zip(concat.inputs, widths, strict=True)):
        name = f"{linear.name}.{i}"
        weight = initializer(graph, name + WEIGHT, columns(name + WEIGHT, source, start, start + width))
        weight.metadata_props[SOURCES] = json.dumps([linear.weight.name])
        weight.metadata_props[COLUMNS] = json.dumps([start, start + width])
        emit = Emitter(name, linear.name)
        y = emit("MatMul", part, emit("Transpose", weight, perm=[1, 0]))
        if i == 0 and linear.bias is not None:
            y = emit("Add", y, linear.bias)
        y.type, y.shape = linear.y.type, linear.y.shape
        if total is not None:
            y = emit("Add", total, y)
        total = y
        nodes += emit.nodes
        start += width
    assert total is not None
    graph.insert_before(linear.matmul, nodes)
    old = linear.y
    total.type, total.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, total, replace_graph_outputs=True)
    graph.remove(list(reversed(linear.nodes)), safe=True)
    graph.remove(concat, safe=True)
