"""The Q/DQ + low-rank pattern becomes one node."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from passes.body import CODE_TYPES, OPSET, svdq_linear
from passes.emit import Emitter
from passes.match import Match
from plugins.svdq_linear.spec import ACTIVATIONS, DOMAIN, GELU_SHIFT, OP_TYPE, OP_VERSION, Variant

_CODES = {dtype: key for key, dtype in CODE_TYPES.items()}


@dataclass(frozen=True)
class Template:
    """The pattern of one variant for one remainder of K: its formal inputs, nodes and output."""

    variant: Variant
    k: int
    inputs: dict[str, ir.Value]
    nodes: list[ir.Node]
    y: ir.Value

    @property
    def overload(self) -> str:
        """Overload of the function. A K that ends inside a group needs its own body: it pads."""
        return self.variant.overload + (f"_k{self.k}" if self.k % self.variant.group_size else "")


def template(variant: Variant, k: int) -> Template:
    """Build the pattern of a variant."""
    inputs = {name: ir.Value(name=name) for name in variant.inputs}
    e = Emitter("svdq")
    y = svdq_linear(e, inputs, variant, k)
    return Template(variant, k, inputs, e.nodes, y)


class FuseSvdqLinear(ir.passes.InPlacePass):
    """The pattern of body.py around every INT4 weight → one svdq::SvdqLinear node; the pattern is its function body.

    1. Every DequantizeLinear of an INT4 initializer is an anchor; the variant is read off the graph around it, the
       pattern of that variant must match node for node.
    2. One function overload per variant, added to the model once.
    3. Raises ValueError where an anchor does not match, saying why: a half-fused graph would run slowly in silence.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        templates: dict[tuple[Variant, int], Template] = {}
        anchors = [node for node in model.graph if _is_anchor(node)]
        for anchor in anchors:
            _fuse(model, anchor, templates)
        if anchors:
            model.graph.opset_imports[DOMAIN] = OP_VERSION
        return ir.passes.PassResult(model, bool(anchors))


def _is_anchor(node: ir.Node) -> bool:
    weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    return weight is not None and weight.is_initializer() and weight.dtype == ir.DataType.INT4


def _fuse(model: ir.Model, anchor: ir.Node, templates: dict[tuple[Variant, int], Template]) -> None:
    qweight = anchor.inputs[0]
    assert qweight is not None and qweight.shape is not None
    k = int(qweight.shape[1])  # type: ignore[arg-type]
    furthest, reason = 0, "no rounding of the sum was found behind it"
    for end in _ends(anchor):
        for variant in _variants(anchor, end):
            pattern = templates.get((variant, k)) or template(variant, k)
            match = Match(pattern.y, {v: n for n, v in pattern.inputs.items()}, end)
            if match.found and match.inputs["qweight"] is qweight:
                templates[variant, k] = pattern
                _replace(model, pattern, match, end)
                return
            if len(match.nodes) > furthest:  # the variant that went deepest before it differed says most
                furthest, reason = len(match.nodes), match.reason
    raise ValueError(f"{qweight.name} is in no pattern of {DOMAIN}::{OP_TYPE}: {reason}")


def _ends(anchor: ir.Node) -> Iterator[ir.Value]:
    """The CastLike outputs reached from the anchor, nearest first: one of them is y."""
    frontier, seen = [anchor.outputs[0]], set()
    for _ in range(12):  # Transpose, MatMul, Add, Add, activation (2), CastLike
        following: list[ir.Value] = []
        for value in frontier:
            for node in (use.node for use in value.uses()):
                if node not in seen:
                    seen.add(node)
                    if node.op_type == "CastLike":
                        yield node.outputs[0]
                    elif node.op_type in ("Transpose", "MatMul", "Add", "Gelu", "Sigmoid", "Mul"):
                        following += node.outputs
        frontier = following


def _variants(anchor: ir.Node, end: ir.Value) -> Iterator[Variant]:
    """The variants that the graph around the anchor may be: what can be read is read, the rest is tried."""
    group_size = anchor.attributes["block_size"].as_int()
    codes = _activation_codes(anchor)
    bits, signed = _CODES[codes] if codes is not None else (16, True)
    for activation, branch, shift in itertools.product(ACTIVATIONS, (True, False), (0.0, GELU_SHIFT)):
        yield Variant(group_size, bits, signed, shift, activation, branch)


def _activation_codes(anchor: ir.Node) -> ir.DataType | None:
    """Type of the activation's codes, read off the DequantizeLinear in front of the product."""
    transpose = next(iter(anchor.outputs[0].uses())).node
    product = next(iter(transpose.outputs[0].uses())).node
    value = product.inputs[0]
    for _ in range(3):  # [Slice], Reshape, DequantizeLinear
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":
            quantise = node.inputs[0].producer() if node.inputs[0] is not None else None
            if quantise is None or quantise.op_type != "QuantizeLinear":
                return None
            return ir.DataType(quantise.attributes["output_dtype"].as_int())
        value = node.inputs[0] if node.inputs else None
    return None


def _replace(model: ir.Model, pattern: Template, match: Match, end: ir.Value) -> None:
    variant, inputs = pattern.variant, match.inputs
    qweight = inputs["qweight"]
    name = str(qweight.name).removesuffix(".qweight")
    rank = int(inputs["down"].shape[1]) if variant.branch else 0  # type: ignore[index, arg-type]
    rounding = end.producer()
    assert rounding is not None
    node = ir.node(
        OP_TYPE,
        [inputs[n] for n in variant.inputs],
        variant.attributes(rank),
        domain=DOMAIN,
        overload=pattern.overload,
        num_outputs=1,
        name=name,
    )
    node.metadata_props.update(rounding.metadata_props)
    y = node.outputs[0]
    y.name, y.type, y.shape = end.name, end.type, end.shape
    graph = model.graph
    graph.insert_before(rounding, node)
    ir.convenience.replace_all_uses_with(end, y, replace_graph_outputs=True)
    _remove_unread(graph, list(match.nodes.values()))
    define(model, pattern)


def define(model: ir.Model, pattern: Template) -> None:
    """Add the pattern to the model as the function body of its overload, unless the model has it."""
    identifier = (DOMAIN, OP_TYPE, pattern.overload)
    if identifier not in model.functions:
        model.functions[identifier] = _function(pattern)


def _remove_unread(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Remove those of `nodes` whose outputs nothing reads any more; a Cast that others share stays."""
    pending = nodes
    while True:
        dead = [n for n in pending if not any(list(o.uses()) or o.is_graph_output() for o in n.outputs)]
        if not dead:
            return
        graph.remove(dead, safe=True)
        pending = [n for n in pending if n not in set(dead)]


def _function(pattern: Template) -> ir.Function:
    fresh = template(pattern.variant, pattern.k)
    graph = ir.Graph(
        [fresh.inputs[n] for n in pattern.variant.inputs],
        [fresh.y],
        nodes=fresh.nodes,
        opset_imports={"": OPSET},
        name=pattern.overload,
    )
    attributes = [
        ir.Attr(k, _TYPES[type(v)], None) for k, v in pattern.variant.attributes(16 * pattern.variant.branch).items()
    ]
    return ir.Function(DOMAIN, OP_TYPE, pattern.overload, graph=graph, attributes=attributes)


_TYPES = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}
