"""The last look at a graph that TensorRT is to parse."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from passes.dtypes import Dtypes, definition, dtypes, parameter
from passes.tensorrt_ops import ALL, IMPORTED_AS, MAX_RANK, OPERATORS, OPSETS, VERSION
from passes.verify import check_wiring
from plugins.svdq_linear import spec

PLUGIN_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class VerifyTensorRT(ir.passes.InPlacePass):
    """Refuse a graph that TensorRT 10.3's ONNX parser would not take; tensorrt_ops.py has the facts.

    1. The opset is in its range, there are no model-local functions (before 10.7 they win over a plugin).
    2. Every node is a listed operator, of the listed types and conditions, or a well-formed SvdqLinear plugin node.
    3. Inputs, outputs and weights have types that TensorRT has, and at most 8 axes.
    4. At least `at_least` plugin nodes.
    5. Its wiring is whole (verify.check_wiring).

    Changes nothing. Raises ValueError naming the node.
    """

    def __init__(self, at_least: int = 0) -> None:
        self.at_least = at_least

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        check_wiring(model.graph)
        reason = objection(model)
        if reason is not None:
            raise ValueError(reason)
        plugins = sum(is_plugin(node) for node in model.graph)
        if plugins < self.at_least:
            raise ValueError(f"{plugins} layers are plugin nodes where {self.at_least} were lowered")
        return ir.passes.PassResult(model, False)


def objection(model: ir.Model) -> str | None:
    """Why TensorRT 10.3 would not parse the model, or None where nothing is known that stops it."""
    return next(_objections(model), None)


def is_plugin(node: ir.Node) -> bool:
    """Whether a node is svdq::SvdqLinear."""
    return (node.domain, node.op_type) == (spec.DOMAIN, spec.OP_TYPE)


def _objections(model: ir.Model) -> Iterator[str]:
    opset = model.graph.opset_imports.get("")
    if opset not in OPSETS:
        yield f"the graph is opset {opset}; TensorRT {VERSION} parses {OPSETS[0]} to {OPSETS[-1]}"
    for _, name, overload in model.functions:
        yield f"function {name} {overload} is defined in the model; TensorRT {VERSION} would take it for the plugin"
    found = dtypes(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        yield from _value(value, found)
    for node in model.graph.all_nodes():
        for output in node.outputs:
            yield from _axes(output)
        said = _plugin(node, found) if is_plugin(node) else _operator(node, found, opset or OPSETS[-1])
        yield from (f"{node.name} ({node.op_type}) {what}" for what in said)


def _value(value: ir.Value, found: Dtypes) -> Iterator[str]:
    dtype = found.get(value)
    if _imported(dtype) not in ALL:
        yield f"{value.name} is {_name(dtype)}; TensorRT {VERSION} has no such type for a tensor"
    yield from _axes(value)


def _axes(value: ir.Value) -> Iterator[str]:
    if value.shape is not None and len(value.shape) > MAX_RANK:
        yield f"{value.name} has {len(value.shape)} axes; TensorRT has {MAX_RANK}"


def _operator(node: ir.Node, found: Dtypes, opset: int) -> Iterator[str]:
    row = OPERATORS.get(node.op_type)
    schema = definition(node.op_type, opset)
    if node.domain or row is None:
        yield f"is no operator that TensorRT {VERSION}'s parser has"
        return
    if schema is None:
        yield f"is no operator of opset {opset}"
        return
    yield from _types(node, found, row.types, row.data or _data(schema), schema)
    for i in row.constant:
        if i < len(node.inputs) and node.inputs[i] is not None and not _is_constant(node.inputs[i]):
            yield f"has an input {i} that is computed; TensorRT {VERSION} needs a constant"
    for name, allowed in row.attributes.items():
        value = node.attributes[name].value if name in node.attributes else None
        value = tuple(value) if isinstance(value, (list, tuple)) else value
        if value is not None and value not in allowed:
            yield f"has {name} {value}; TensorRT {VERSION} has {', '.join(map(str, allowed))}"
    if row.outputs is not None and len(node.outputs) > row.outputs:
        yield f"has {len(node.outputs)} outputs; TensorRT {VERSION} gives {row.outputs}"
    if node.op_type == "Squeeze" and (len(node.inputs) < 2 or node.inputs[1] is None):
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None or not shape.is_static():
            yield "squeezes axes of unknown size; TensorRT needs to be told which"


def _data(schema: object) -> tuple[str, ...]:
    """The type variable of the first input, or of the first output where there is no input."""
    formals = schema.inputs or schema.outputs  # type: ignore[attr-defined]
    return (formals[0].type_str,)


def _types(
    node: ir.Node, found: Dtypes, types: frozenset[ir.DataType], data: tuple[str, ...], schema: object
) -> Iterator[str]:
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):  # type: ignore[attr-defined]
        for i, value in enumerate(values):
            formal = parameter(formals, i)
            if value is None or formal is None or formal.type_str not in data:
                continue
            dtype = found.get(value)
            if _imported(dtype) not in types:
                yield f"computes in {_name(dtype)}; TensorRT {VERSION} has {_names(types)} for it"


def _plugin(node: ir.Node, found: Dtypes) -> Iterator[str]:
    if node.overload:
        yield f"still names the function overload {node.overload!r}"
    rank = node.attributes["rank"].as_int() if "rank" in node.attributes else 0
    names = spec.INPUTS if rank else tuple(n for n in spec.INPUTS if n not in spec.BRANCH_INPUTS)
    if len(node.inputs) != len(names) or None in node.inputs:
        yield f"has {len(node.inputs)} inputs; rank {rank} needs {', '.join(names)}"
        return
    t = found.get(node.inputs[0])  # type: ignore[arg-type]
    if t not in PLUGIN_TYPES:
        yield f"computes in {_name(t)}; the plugin has {_names(PLUGIN_TYPES)}"
    for name, value in zip(names[1:], node.inputs[1:], strict=True):
        assert value is not None
        wanted = ir.DataType.INT32 if name == "qweight" else t
        if found.get(value) != wanted:
            yield f"has {name} in {_name(found.get(value))}; the plugin needs {_name(wanted)}"
        if not value.is_initializer():
            yield f"has a computed {name}; the plugin needs a constant"


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and node.op_type == "Constant"


def _imported(dtype: ir.DataType | None) -> ir.DataType | None:
    return IMPORTED_AS.get(dtype, dtype) if dtype is not None else None


def _name(dtype: ir.DataType | None) -> str:
    return "an unknown type" if dtype is None else dtype.name


def _names(types: object) -> str:
    return ", ".join(sorted(t.name for t in types))  # type: ignore[attr-defined]
