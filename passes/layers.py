"""Which layers of a graph are quantised, and as what: the contract between the graph, calibration and the solver."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from passes.linear import Linear, find_linears
from passes.policy import KEEP, Policy
from passes.stacked import source_columns, sources


@dataclass(frozen=True)
class Layer:
    """One linear of the graph after merging and splitting.

    name      of the canonical linear
    weights   source initializers, stacked along N
    biases    their biases, None where one has none; empty where the layer has none at all
    columns   [start, stop) of the sources' columns, or None for all
    module    dotted path of a torch module whose input is the layer's (before taking the columns)
    input     key shared by layers that read the same tensor
    k, n      input and output features
    scheme    passes.policy.FOUR_BIT, WEIGHT_ONLY or KEEP
    after_gelu  the input is a plain GELU's output, so that it can be quantised unsigned after a shift
    """

    name: str
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    columns: tuple[int, int] | None
    module: str
    input: str
    k: int
    n: int
    scheme: str
    after_gelu: bool


def find_layers(graph: ir.Graph, policy: Policy) -> list[Layer]:
    """The layers of a graph on which the preset's merging and splitting passes have run.

    Linears that the policy keeps in 16 bits are listed too, with scheme KEEP.
    """
    return [_layer(linear, policy) for linear in find_linears(graph)]


def _layer(linear: Linear, policy: Policy) -> Layer:
    weights = sources(linear.weight)
    columns = source_columns(linear.weight)
    module = weights[0].removesuffix(".weight")
    # A part of a concatenation is calibrated through the whole: its key is that of the module's own input.
    key = str(linear.x.name) if columns is None else f"{module}:input"
    return Layer(
        linear.name,
        weights,
        sources(linear.bias) if linear.bias is not None else (),
        columns,
        module,
        key,
        linear.k,
        linear.n,
        policy.scheme(module),
        after_plain_gelu(linear.x),
    )


def quantised(layers: list[Layer]) -> list[Layer]:
    """Those that a quantising preset touches."""
    return [layer for layer in layers if layer.scheme != KEEP]


def after_plain_gelu(value: ir.Value) -> bool:
    """Whether the value is the output of a GELU itself, not of a GEGLU's product or anything later."""
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Identity", "Cast"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "Gelu"
