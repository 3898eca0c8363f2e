"""The opset of the two written forms: 21 for the portable one, 20 for what TensorRT parses."""

from __future__ import annotations

import onnx_ir as ir

from passes.body import OPSET
from passes.dtypes import definition, dtypes, parameter, type_name
from passes.tensorrt_ops import OPSETS

# Operators whose definition changed between 20 and 21 in more than the types they take. None of them is exported.
_CHANGED = {"GroupNormalization", "QuantizeLinear", "DequantizeLinear"}
_LOWERED = OPSETS[-1]


class PortableOpset(ir.passes.InPlacePass):
    """Raise the model from the exported opset 20 to 21, where blocked INT4 quantisation begins, and IR 10.

    Between the two only GroupNormalization and the Q/DQ operators changed in meaning; a graph that already has one
    of them is refused with ValueError.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [n.op_type for n in model.graph if n.op_type in _CHANGED and n.domain == ""]
        if changed and model.graph.opset_imports.get("") != OPSET:
            raise ValueError(f"cannot raise the opset past {changed[0]}, whose definition changed in {OPSET}")
        model.graph.opset_imports[""] = OPSET
        model.ir_version = 10
        return ir.passes.PassResult(model, True)


class LowerOpset(ir.passes.InPlacePass):
    """Bring the model back from opset 21 to 20, having shown that nothing of 21 is left in it.

    1. A node whose operator is defined alike in both may stay.
    2. Where 21 only took more types (Reshape, Transpose, ...), the node's types must be among those of 20.
    3. Refused with ValueError naming the node: the operators that changed in meaning, an operator that 20 has not, a
       type that nothing tells.

    A model of opset 20 or less stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.graph.opset_imports[""]
        if opset <= _LOWERED:
            return ir.passes.PassResult(model, False)
        if opset != OPSET:
            raise ValueError(f"the graph is opset {opset}; only {OPSET} is known to differ from {_LOWERED} in types")
        found = dtypes(model)
        for node in model.graph.all_nodes():
            if not node.domain:
                _check(node, found)
        model.graph.opset_imports[""] = _LOWERED
        return ir.passes.PassResult(model, True)


def _check(node: ir.Node, found: dict[ir.Value, ir.DataType]) -> None:
    """Raise ValueError where the node means something else, or nothing, in the lower opset."""
    before, after = definition(node.op_type, OPSET), definition(node.op_type, _LOWERED)
    if after is None or before is None or node.op_type in _CHANGED:
        raise ValueError(f"{node.name} is a {node.op_type} of opset {OPSET}, which opset {_LOWERED} does not have")
    if before.since_version == after.since_version:
        return
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in after.type_constraints}
    for values, formals in ((node.inputs, after.inputs), (node.outputs, after.outputs)):
        for i, value in enumerate(values):
            formal = parameter(formals, i)
            if value is None or formal is None:
                continue
            dtype = found.get(value)
            if dtype is None or type_name(dtype) not in allowed.get(formal.type_str, {formal.type_str}):
                told = "of an unknown type" if dtype is None else dtype.name
                raise ValueError(f"{node.name} ({node.op_type}) takes {told}, which opset {_LOWERED} does not have")
