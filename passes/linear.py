"""The canonical form of a linear layer, and how to find it.

    x ──────────────► MatMul ──► [Add bias] ──► y
    W[N, K] ─► Transpose ─┘

`W` and `bias` are initializers; the layer's name is the weight's without ".weight", that is, the dotted path of the
module that it came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

WEIGHT = ".weight"


@dataclass(frozen=True)
class Linear:
    """A view of one canonical linear; `add` and `bias` are None where there is no bias."""

    name: str
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    transpose: ir.Node
    matmul: ir.Node
    add: ir.Node | None

    @property
    def y(self) -> ir.Value:
        """The layer's output."""
        return (self.add or self.matmul).outputs[0]

    @property
    def n(self) -> int:
        """Output features."""
        return int(self.weight.shape[0])  # type: ignore[index, arg-type]

    @property
    def k(self) -> int:
        """Input features."""
        return int(self.weight.shape[1])  # type: ignore[index, arg-type]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that are this layer's own, first to last; a Transpose that others read is not."""
        own = (self.transpose,) if len(self.transpose.outputs[0].uses()) == 1 else ()
        return (*own, self.matmul, *((self.add,) if self.add else ()))


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, or None where there are several, none, or it is a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 2


def bias_of(matmul: ir.Node, n: int) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add behind `matmul` whose other input is an initializer [n], and that initializer."""
    add = only_user(matmul.outputs[0])
    if add is None or add.op_type != "Add":
        return None, None
    other = add.inputs[1] if add.inputs[0] is matmul.outputs[0] else add.inputs[0]
    if other is None or not other.is_initializer() or list(other.shape or ()) != [n]:
        return None, None
    return add, other


def as_linear(matmul: ir.Node) -> Linear | None:
    """The linear whose product this node is, or None where it is not in canonical form."""
    if matmul.op_type != "MatMul" or matmul.domain not in ("", "ai.onnx"):
        return None
    x, right = matmul.inputs
    transpose = right.producer() if right is not None else None
    if x is None or transpose is None or transpose.op_type != "Transpose":
        return None
    weight = transpose.inputs[0]
    if weight is None or not _is_matrix(weight) or not (weight.name or "").endswith(WEIGHT):
        return None
    if "perm" in transpose.attributes and list(transpose.attributes["perm"].as_ints()) != [1, 0]:
        return None
    add, bias = bias_of(matmul, int(weight.shape[0]))  # type: ignore[index, arg-type]
    return Linear(str(weight.name).removesuffix(WEIGHT), x, weight, bias, transpose, matmul, add)


def find_linears(graph: ir.Graph) -> list[Linear]:
    """All canonical linears in the graph's order."""
    return [linear for node in graph if (linear := as_linear(node)) is not None]
