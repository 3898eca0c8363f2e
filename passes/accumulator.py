"""The form in which the terms of a linear are added: in float32, rounded once.

    x ─► MatMul(·, Wᵀ) ─► Cast(float32) ─► [Add branch] ─► Add Cast(bias) ─► CastLike(·, x) ─► y

Passes replace or add terms; the rounding at the end stays one.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from passes.body import wide
from passes.emit import Emitter, initializer
from passes.linear import Linear, find_linears, only_user
from passes.stacked import zeros


@dataclass(frozen=True)
class Accumulator:
    """A linear in accumulator form: `main` is the float32 product, `first` the Add (or CastLike) that reads it."""

    linear: Linear
    main: ir.Value

    @property
    def first(self) -> ir.Node:
        """The node that reads the product: where a further term is put in."""
        node = only_user(self.main)
        assert node is not None
        return node

    @property
    def emit(self) -> Emitter:
        """An emitter for nodes of this layer."""
        return Emitter(self.linear.name, self.linear.matmul.metadata_props.get("svdq.scope", ""))


def widened(graph: ir.Graph) -> dict[str, Accumulator]:
    """Every linear of the graph that is in accumulator form, by name.

    Told by the name that `widen` gives its Cast: a model may have one of its own there (attention in float32).
    """
    found = {}
    for linear in find_linears(graph):
        cast = only_user(linear.matmul.outputs[0])
        if cast is not None and cast.op_type == "Cast" and str(cast.name).startswith(_prefix(linear)):
            found[linear.name] = Accumulator(linear, cast.outputs[0])
    return found


def widen(graph: ir.Graph, linear: Linear) -> Accumulator:
    """Bring a canonical linear into accumulator form; a missing bias becomes zeros.

    The bias becomes the layer's own initializer "<name>.bias", so that a later correction changes no other layer.
    """
    weight = linear.weight.const_value
    assert weight is not None
    e = Emitter(_prefix(linear), linear.matmul.metadata_props.get("svdq.scope", ""))
    main = wide(e, linear.matmul.outputs[0])
    total = e("Add", main, wide(e, _own_bias(graph, linear, weight.dtype)))
    y = e("CastLike", total, linear.x)
    old = linear.y
    y.type, y.shape = old.type, old.shape
    graph.insert_after(linear.nodes[-1], e.nodes)
    if linear.add is None:
        # The Cast reads the product itself: every other reader moves to the new output.
        cast = e.nodes[0]
        for use in list(old.uses()):
            if use.node is not cast:
                use.node.replace_input_with(use.idx, y)
        _rename_graph_output(graph, old, y)
    else:
        ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
        graph.remove(linear.add, safe=True)
    return Accumulator(linear, main)


def _prefix(linear: Linear) -> str:
    """What the names of the nodes begin with that `widen` makes."""
    return f"{linear.name}/sum"


def _own_bias(graph: ir.Graph, linear: Linear, dtype: ir.DataType) -> ir.Value:
    name = f"{linear.name}.bias"
    if linear.bias is not None and linear.bias.name == name:
        return linear.bias
    if linear.bias is not None:
        assert linear.bias.const_value is not None
        return initializer(graph, name, linear.bias.const_value)
    return initializer(graph, name, zeros(name, dtype, linear.n))


def _rename_graph_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for i, output in enumerate(graph.outputs):
        if output is old:
            new.name, old.name = old.name, f"{old.name}/product"
            graph.outputs[i] = new
