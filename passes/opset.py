"""The portable form's opset."""

from __future__ import annotations

import onnx_ir as ir

from passes.body import OPSET

# Operators whose definition changed between 20 and 21 in more than the types they take. None of them is exported.
_CHANGED = {"GroupNormalization", "QuantizeLinear", "DequantizeLinear"}


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
