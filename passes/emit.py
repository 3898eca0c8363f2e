"""Making nodes in place: one emitter for graphs and for function bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Emitter:
    """Creates nodes, named below `prefix`, and collects them in order.

    The nodes belong to no graph until the caller inserts `nodes` somewhere.
    """

    def __init__(self, prefix: str, scope: str = "") -> None:
        self.prefix = prefix
        self.scope = scope
        self.nodes: list[ir.Node] = []
        self._seen: dict[str, int] = {}

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node with one output and return that output."""
        return self.multi(op_type, inputs, 1, **attributes)[0]

    def multi(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        count = self._seen[op_type] = self._seen.get(op_type, 0) + 1
        name = f"{self.prefix}/{op_type}" + (f"_{count}" if count > 1 else "")
        node = ir.node(op_type, list(inputs), attributes, domain=domain, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}:{i}"
        if self.scope:
            node.metadata_props["svdq.scope"] = self.scope
        self.nodes.append(node)
        return node.outputs

    def const(self, value: Any, dtype: Any) -> ir.Value:
        """A Constant node: function bodies can hold no initializers."""
        return self("Constant", value=ir.tensor(np.asarray(value, dtype)))


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a named weight in `graph`; refuses a name that is taken by something else."""
    if name in graph.initializers:
        raise ValueError(f"the graph already has an initializer {name!r}")
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
