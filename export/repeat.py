"""The graph of a model from that of a few of its blocks: a block's nodes are repeated for those that were left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from export.alike import Run
from export.names import scopes
from export.tidy import SCOPE
from export.weights import unbound

_Values = dict[ir.Value, ir.Value]


class NotAlikeError(Exception):
    """Blocks of a run that differ in the graph; says in what."""


def repeat(model: ir.Model, runs: Sequence[Run]) -> None:
    """Put the blocks of `runs` that were left out back into the graph, in place.

    1. The second block's nodes must map one to one onto the third's: the same operators and attributes, and inputs that
       are the same value, the weights of the same names below the blocks, equal constants, or what the second reads of
       the first and the third of the second.
    2. Each block that was left out becomes a copy of the third, which reads what the block before it computed.
    3. Whatever read the third block reads the last copy.

    The run's first and last block may differ from the others: what all share is computed in the first, and what nobody
    reads of the last is gone. Raises NotAlikeError where 1 does not hold, or where something behind the second block
    reads what the third reads of it, or something behind the first what the second reads of that. A block that depends
    on its number in a way that neither shows here nor in its attributes would be copied wrongly: the tests compare
    every family's graph with the one of all its blocks.
    """
    for run in runs:
        _repeat(model.graph, run)


@dataclass
class _Block:
    """Nodes of one block, and below which path its modules and weights lie."""

    path: str
    nodes: list[ir.Node] = field(default_factory=list)

    def has(self, node: ir.Node) -> bool:
        return node in self._members

    def holds(self, value: ir.Value) -> bool:
        return value.producer() in self._members

    def own_name(self, value: ir.Value) -> str | None:
        """Name below the block of one of its weights."""
        name = value.name or ""
        return name.removeprefix(self.path) if value.is_initializer() and name.startswith(f"{self.path}.") else None

    def close(self) -> _Block:
        self._members = set(self.nodes)
        return self


def _blocks(graph: ir.Graph, run: Run) -> tuple[_Block, _Block, _Block]:
    """The run's first three blocks."""
    blocks = [_Block(run.path(name)) for name in (run.first, run.second, run.third)]
    for node, scope in scopes(graph):
        for block in blocks:
            if scope == block.path or scope.startswith(f"{block.path}."):
                block.nodes.append(node)
    first, second, third = (block.close() for block in blocks)
    return first, second, third


def _repeat(graph: ir.Graph, run: Run) -> None:
    first, second, third = _blocks(graph, run)
    same, carried = _match(first, second, third)
    for block, values in ((first, carried), (second, carried.values())):
        _check_readers(block, values, second if block is first else third)
    before = {value: same[value] for value in carried.values()}
    readers = {v: [u for u in v.uses() if not third.has(u.node)] for n in third.nodes for v in n.outputs}
    outputs = {v: i for i, v in enumerate(graph.outputs)}
    place = third.nodes[-1]
    _check_order(graph, place, {u.node for uses in readers.values() for u in uses})
    for name in run.left_out:
        copies, place = _copy(graph, third, _Block(run.path(name)), before, place)
        before = {value: copies[same[value]] for value in before}
    for value, uses in readers.items():
        for use in uses:
            use.node.replace_input_with(use.idx, copies[value])
        if value in outputs:
            copies[value].name, value.name = value.name, copies[value].name
            graph.outputs[outputs[value]] = copies[value]


def _match(first: _Block, second: _Block, third: _Block) -> tuple[_Values, _Values]:
    """{values of the second block: the third's}, {what the second reads of the first: the third of the second}."""
    if not second.nodes or len(second.nodes) != len(third.nodes):
        raise NotAlikeError(f"{second.path} has {len(second.nodes)} nodes, {third.path} {len(third.nodes)}")
    same: _Values = {}
    carried: _Values = {}
    for a, b in zip(second.nodes, third.nodes, strict=True):
        if _kind(a) != _kind(b):
            raise NotAlikeError(f"{a.name} in {second.path} is not {b.name} in {third.path}")
        for x, y in zip(a.inputs, b.inputs, strict=True):
            if not _corresponds(x, y, first, second, third, same, carried):
                raise NotAlikeError(f"{a.name} in {second.path} reads another input than {b.name} in {third.path}")
        same.update(zip(a.outputs, b.outputs, strict=True))
    return same, carried


def _check_readers(block: _Block, values: Iterable[ir.Value], following: _Block) -> None:
    """Raises NotAlikeError where others than the two blocks read what the one has for the other."""
    for value in values:
        if value.is_graph_output() or not all(block.has(u.node) or following.has(u.node) for u in value.uses()):
            raise NotAlikeError(f"{value.name} of {block.path} is read behind {following.path}, too")


def _check_order(graph: ir.Graph, last: ir.Node, readers: set[ir.Node]) -> None:
    """Raises NotAlikeError where one of `readers` comes before `last`, behind which the copies are put."""
    for node in graph:
        if node is last:
            return
        if node in readers:
            raise NotAlikeError(f"{node.name} reads a block before that has ended")


def _corresponds(
    x: ir.Value | None, y: ir.Value | None, first: _Block, second: _Block, third: _Block,
    same: _Values, carried: _Values,
) -> bool:  # fmt: skip
    """Whether `y` is to the third block what `x` is to the second; notes in `carried` what the block before gives."""
    if x is None or y is None:
        return x is y
    if second.holds(x):
        return same[x] is y
    if first.holds(x) and second.holds(y):
        return carried.setdefault(x, y) is y
    if x is y:
        return x not in carried
    if second.own_name(x) is not None:
        return second.own_name(x) == third.own_name(y) and x.shape == y.shape and x.dtype == y.dtype
    return _equal(x, y)


def _kind(node: ir.Node) -> tuple[object, ...]:
    """What equal nodes have in common; a tensor or a graph as an attribute equals no other."""
    attributes = {k: (a.type, a.value) for k, a in node.attributes.items()}
    return node.domain, node.op_type, node.overload, len(node.inputs), len(node.outputs), attributes


def _equal(x: ir.Value, y: ir.Value) -> bool:
    """Whether both are constants, and the same."""
    if not (x.is_initializer() and y.is_initializer()):
        return False
    a, b = x.const_value, y.const_value
    if a is None or b is None or isinstance(a, ir.ExternalTensor) or isinstance(b, ir.ExternalTensor):
        return False  # weights, whose values are not known here
    return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy())


def _copy(graph: ir.Graph, third: _Block, block: _Block, before: _Values, place: ir.Node) -> tuple[_Values, ir.Node]:
    """Insert the third block's nodes as another block's, behind `place`; {value: its copy}, and the last node."""
    copies = dict(before)

    def read(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in copies:
            return None if value is None else copies[value]
        own = third.own_name(value)
        if own is None:
            return value
        weight = ir.Value(name=block.path + own, type=value.type, shape=value.shape)
        weight.const_value = unbound(weight)
        graph.register_initializer(weight)
        return copies.setdefault(value, weight)

    for node in third.nodes:
        new = ir.Node(
            node.domain, node.op_type, [read(v) for v in node.inputs], node.attributes.values(),
            overload=node.overload, num_outputs=len(node.outputs), name=f"{node.name}@{block.path}",
        )  # fmt: skip
        scope = node.metadata_props.get(SCOPE)
        if scope is not None:
            new.metadata_props[SCOPE] = block.path + scope.removeprefix(third.path)
        for value, old in zip(new.outputs, node.outputs, strict=True):
            value.name, value.type, value.shape = f"{old.name}@{block.path}", old.type, old.shape
            copies[old] = value
        graph.insert_after(place, new)
        place = new
    return copies, place
