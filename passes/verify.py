"""The last look at a graph."""

from __future__ import annotations

import onnx_ir as ir

from passes.body import OPSET
from plugins.svdq_linear.spec import DOMAIN, OP_TYPE


class VerifyGraph(ir.passes.InPlacePass):
    """Refuse a graph that a runtime would refuse, or run differently than meant.

    1. Every value that a node reads is produced before it, an input, or an initializer with data.
    2. Names of values and nodes are unique and not empty.
    3. Every initializer is read: a dead one would be written, shipped and loaded.
    4. No INT4 weight outside svdq::SvdqLinear, no SvdqLinear without its function body.
    5. At least `at_least` SvdqLinear nodes: a preset that must quantise and matched nothing is an error.

    Changes nothing. Raises ValueError naming the node.
    """

    def __init__(self, at_least: int = 0) -> None:
        self.at_least = at_least

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        check_wiring(graph)
        fused = 0
        for node in graph:
            if node.domain == DOMAIN:
                fused += 1
                if (DOMAIN, OP_TYPE, node.overload) not in model.functions:
                    raise ValueError(f"{node.name} calls overload {node.overload!r}, which the model does not define")
            elif any(v is not None and v.is_initializer() and v.dtype == ir.DataType.INT4 for v in node.inputs):
                raise ValueError(f"{node.name} ({node.op_type}) reads an INT4 weight outside {DOMAIN}::{OP_TYPE}")
        if model.functions and graph.opset_imports.get("") != OPSET:
            raise ValueError(f"the portable form is opset {OPSET}, the graph says {graph.opset_imports.get('')}")
        if fused < self.at_least:
            raise ValueError(f"{fused} layers were fused where {self.at_least} were solved")
        return ir.passes.PassResult(model, False)


def check_wiring(graph: ir.Graph) -> None:
    """Cases 1 to 3 of `VerifyGraph`, which hold for every written graph. Raises ValueError naming the node."""
    known: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    names: set[str] = set()
    for value in graph.initializers.values():
        if value.const_value is None:
            raise ValueError(f"initializer {value.name} has no data")
        if not list(value.uses()) and not value.is_graph_output():
            raise ValueError(f"initializer {value.name} is read by nothing")
    for node in graph:
        for read in node.inputs:
            if read is not None and read not in known:
                raise ValueError(f"{node.name} ({node.op_type}) reads {read.name}, which nothing produces before it")
        known.update(node.outputs)
        for name in (f"node {node.name}", *(f"value {o.name}" for o in node.outputs)):
            if name in names or name.endswith((" ", "None")):
                raise ValueError(f"{name} is unnamed or named twice ({node.op_type})")
            names.add(name)
