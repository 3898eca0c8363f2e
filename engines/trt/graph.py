"""What the ONNX graph of an engine says about its layers: which are the plugin's, and which are float32 by design."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.svdq_linear.spec import OP_TYPE

# Operators whose output type follows from no input.
_FIXED = {"Shape": "int64", "Size": "int64", "NonZero": "int64", "ArgMax": "int64", "ArgMin": "int64"}
_BOOLEAN = {
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsInf", "IsNaN",
}  # fmt: skip
_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
}  # fmt: skip
_SECOND = {"Where"}  # the first input is a condition


@dataclass(frozen=True)
class Graph:
    """`plugins`: names of the 4-bit nodes. `order`: names of all nodes, as they run. `float32`: those that take or
    give a float32 tensor (Cast among them), `float32_results`: those that give one. `float32_values`: names of float32
    tensors. `axes_as_inputs`: reductions that are told their axes by an input, as they are from opset 18 on."""

    plugins: tuple[str, ...]
    order: tuple[str, ...]
    float32: frozenset[str]
    float32_results: frozenset[str]
    float32_values: frozenset[str]
    axes_as_inputs: tuple[str, ...] = ()

    def between(self, first: str, last: str) -> tuple[str, ...]:
        """The nodes from `first` to `last`, both included, in the order in which they run; () where one is unknown."""
        try:
            start, end = sorted((self.order.index(first), self.order.index(last)))
        except ValueError:
            return ()
        return self.order[start : end + 1]


def read(model: Path) -> Graph:
    """Of the .onnx file, without its weights."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    types = _types(graph)
    wide = frozenset(name for name, kind in types.items() if kind == "float32")
    named = [(n.name or n.op_type, n) for n in graph.node]
    return Graph(
        tuple(name for name, n in named if n.op_type == OP_TYPE),
        tuple(name for name, _ in named),
        frozenset(name for name, n in named if wide & {*n.input, *n.output}),
        frozenset(name for name, n in named if wide & set(n.output)),
        wide,
        tuple(name for name, n in named if n.op_type in _REDUCTIONS and len(n.input) > 1 and n.input[1]),
    )


def _types(graph: Any) -> dict[str, str]:
    """The type of every tensor: as the graph says, else as the operator makes it of its inputs."""
    import onnx

    def called(number: int) -> str:
        name = onnx.TensorProto.DataType.Name(number).lower()
        return "float32" if name == "float" else name

    types = {t.name: called(t.data_type) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type:
            types[value.name] = called(value.type.tensor_type.elem_type)
    for node in graph.node:
        made = _made(node, types, called)
        for output in node.output:
            if made and output not in types:
                types[output] = made
    return types


def _made(node: Any, types: dict[str, str], called: Any) -> str | None:
    """The type of a node's outputs where the graph does not say; None where it cannot be told."""
    if node.op_type in _FIXED:
        return _FIXED[node.op_type]
    if node.op_type in _BOOLEAN:
        return "bool"
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            return called(attribute.i)
        if node.op_type in ("Constant", "ConstantOfShape") and attribute.name == "value":
            return called(attribute.t.data_type)
        if node.op_type == "Constant":
            return {"value_float": "float32", "value_floats": "float32"}.get(attribute.name, "int64")
    if node.op_type == "ConstantOfShape":
        return "float32"
    return next(_known(node.input[1:] if node.op_type in _SECOND else node.input, types), None)


def _known(names: Any, types: dict[str, str]) -> Iterator[str]:
    return (types[n] for n in names if n in types)
