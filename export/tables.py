"""Embedding tables of a float32 graph in the 16-bit type of their file: half the size, and the same numbers."""

from __future__ import annotations

import onnx_ir as ir

STORED = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def is_table(value: ir.Value) -> bool:
    """Whether all that reads the weight takes rows of it, so that they can be cast after they were taken."""
    uses = list(value.uses())
    return bool(uses) and all(use.node.op_type == "Gather" and use.idx == 0 for use in uses)


def gather_as_stored(graph: ir.Graph, table: ir.Value, stored: ir.DataType) -> None:
    """Gather(table, ids) → Cast(Gather(table, ids)) in place, the table of type `stored` from here on."""
    wide = table.dtype
    assert wide is not None
    for gather in [use.node for use in table.uses()]:
        rows = ir.node("Gather", gather.inputs, gather.attributes, name=gather.name)
        rows.outputs[0].name, rows.outputs[0].type = f"{gather.name}.stored", ir.TensorType(stored)
        cast = ir.node("Cast", rows.outputs, {"to": wide}, name=f"{gather.name}.Cast")
        for node in (rows, cast):
            node.metadata_props.update(gather.metadata_props)
        old, new = gather.outputs[0], cast.outputs[0]
        graph.insert_before(gather, [rows, cast])
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(gather, safe=True)
    table.type = ir.TensorType(stored)
