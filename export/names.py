"""Names of nodes and values by where they are in the model: what a profiler or a viewer shows is then readable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from export.tidy import SCOPE


def scopes(graph: ir.Graph) -> Iterator[tuple[ir.Node, str]]:
    """Every node with its module's path; one that the optimiser made has that of the node in front of it."""
    scope = ""
    for node in graph:
        scope = node.metadata_props.get(SCOPE, scope)
        yield node, scope


def name_by_scope(model: ir.Model) -> None:
    """Name every node "<module>.<Operator>", numbered where a module has several, and its outputs after it, in place.

    Inputs, outputs and weights keep their names; constants are numbered. Initializers come in the order in which the
    graph reads them. So the names depend on the graph alone, and not on how it was made.
    """
    graph = model.graph
    kept = {v.name for v in (*graph.inputs, *graph.outputs)}
    seen: Counter[str] = Counter()
    read: dict[ir.Value, None] = {}
    for node, scope in scopes(graph):
        name = f"{scope}.{node.op_type}" if scope else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for i, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{i}"
        read |= {v: None for v in node.inputs if v is not None and v.is_initializer()}
    read |= {v: None for v in graph.outputs if v.is_initializer()}
    for value in list(graph.initializers.values()):
        graph.initializers.pop(str(value.name))
    constants = (v for v in read if not isinstance(v.const_value, ir.ExternalTensor) and v.name not in kept)
    for i, value in enumerate(constants):
        value.name = f"constant_{i}"
    for value in read:
        graph.initializers.add(value)
