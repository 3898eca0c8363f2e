"""Finding a template's copy in a graph, backwards from its last node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class Match:
    """Tries to lay `template` (its nodes and named inputs) over the graph so that `end` lies on `value`.

    After a success: `inputs` maps each template input to the graph's value, `nodes` are the graph's nodes matched.
    After a failure `reason` says where the two differ.
    """

    def __init__(self, end: ir.Value, inputs: dict[ir.Value, str], value: ir.Value) -> None:
        self.names = inputs
        self.inputs: dict[str, ir.Value] = {}
        self.nodes: dict[ir.Node, ir.Node] = {}
        self.reason = ""
        self.found = self._value(end, value)

    def _fail(self, reason: str) -> bool:
        self.reason = self.reason or reason
        return False

    def _value(self, pattern: ir.Value | None, value: ir.Value | None) -> bool:
        if pattern is None or value is None:
            return pattern is value or self._fail("an optional input is there on one side only")
        name = self.names.get(pattern)
        if name is not None:
            known = self.inputs.setdefault(name, value)
            return known is value or self._fail(f"input {name} is {known.name} here and {value.name} there")
        expected, node = pattern.producer(), value.producer()
        assert expected is not None
        if node is None:
            return self._fail(f"{value.name} is an input where {expected.op_type} was expected")
        return self._node(expected, node)

    def _node(self, expected: ir.Node, node: ir.Node) -> bool:
        if expected in self.nodes:
            return self.nodes[expected] is node or self._fail(f"{expected.op_type} is shared in one place only")
        if (expected.op_type, expected.domain) != (node.op_type, node.domain):
            return self._fail(f"{node.name} is {node.op_type} where {expected.op_type} was expected")
        if not _same_attributes(expected, node):
            return self._fail(f"{node.name} ({node.op_type}) has other attributes")
        if len(expected.inputs) != len(node.inputs):
            return self._fail(f"{node.name} ({node.op_type}) has another number of inputs")
        self.nodes[expected] = node
        return all(self._value(p, v) for p, v in zip(expected.inputs, node.inputs, strict=True))


def _same_attributes(a: ir.Node, b: ir.Node) -> bool:
    if set(a.attributes) != set(b.attributes):
        return False
    return all(_same(a.attributes[k].value, b.attributes[k].value) for k in a.attributes)


def _same(a: object, b: object) -> bool:
    if isinstance(a, ir.TensorProtocol) and isinstance(b, ir.TensorProtocol):
        return a.dtype == b.dtype and list(a.shape) == list(b.shape) and bool(np.array_equal(a.numpy(), b.numpy()))
    return bool(a == b)
