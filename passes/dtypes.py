"""Element types of a graph's values, where the graph itself does not say them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from plugins.svdq_linear.spec import DOMAIN

Dtypes = dict[ir.Value, ir.DataType]


def dtypes(model: ir.Model) -> Dtypes:
    """The type of every value that has one: its own, or what ONNX's operator definitions make of its node's inputs.

    svdq::SvdqLinear gives the type of its x. A value whose type nothing tells is absent.
    """
    opset = int(model.graph.opset_imports[""])
    found: Dtypes = {}
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _note(found, value, None)
    for node in model.graph.all_nodes():
        inferred = _inferred(node, found, opset) if any(o.dtype is None for o in node.outputs) else {}
        for i, output in enumerate(node.outputs):
            _note(found, output, inferred.get(i))
    return found


def _note(found: Dtypes, value: ir.Value, inferred: ir.DataType | None) -> None:
    own = value.dtype if value.dtype is not None else inferred
    if own is None and value.const_value is not None:
        own = value.const_value.dtype
    if own is not None:
        found[value] = own


def _inferred(node: ir.Node, found: Dtypes, opset: int) -> dict[int, ir.DataType]:
    """Types of the outputs that the node's definition tells, by position."""
    if node.domain == DOMAIN:
        x = node.inputs[0]
        return {0: found[x]} if x is not None and x in found else {}
    told = _attribute_type(node)
    if told is not None:
        return {0: told}
    schema = definition(node.op_type, opset)
    if node.domain or schema is None:
        return {}
    bound: dict[str, ir.DataType] = {}
    for i, value in enumerate(node.inputs):
        formal = parameter(schema.inputs, i)
        if value in found and formal is not None and formal.is_homogeneous:
            bound[formal.type_str] = found[value]
    only = {c.type_param_str: c.allowed_type_strs[0] for c in schema.type_constraints if len(c.allowed_type_strs) == 1}
    outputs = {}
    for i in range(len(node.outputs)):
        formal = parameter(schema.outputs, i)
        name = "" if formal is None else formal.type_str
        told = bound.get(name, _BY_NAME.get(only.get(name, name)))
        if told is not None:
            outputs[i] = told
    return outputs


def _attribute_type(node: ir.Node) -> ir.DataType | None:
    """The output's type of the operators that say it in an attribute."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in ("Constant", "ConstantOfShape"):
        for name, attribute in node.attributes.items():
            if name == "value":
                return attribute.as_tensor().dtype
            if name.startswith("value_") and name.split("_")[1] in _VALUE:
                return _VALUE[name.split("_")[1]]
    return ir.DataType.FLOAT if node.op_type == "ConstantOfShape" else None


_VALUE = {
    "int": ir.DataType.INT64, "ints": ir.DataType.INT64,
    "float": ir.DataType.FLOAT, "floats": ir.DataType.FLOAT,
    "string": ir.DataType.STRING, "strings": ir.DataType.STRING,
}  # fmt: skip


@cache
def definition(op_type: str, opset: int) -> Any:
    """ONNX's definition (onnx.defs.OpSchema) of a standard operator in an opset; None where it has none."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def parameter(formals: Sequence[Any], position: int) -> Any:
    """The formal input or output at a position; the last one repeats where it is variadic."""
    if position < len(formals):
        return formals[position]
    last = formals[-1] if formals else None
    return last if last is not None and last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic else None


def type_name(dtype: ir.DataType) -> str:
    """As ONNX's definitions spell it: "tensor(float16)"."""
    return f"tensor({dtype.name.lower()})"


_BY_NAME = {type_name(d): d for d in ir.DataType}
