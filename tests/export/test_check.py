"""Exported graphs equal torch at sizes that they were not exported at, and a wrong one is caught."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export.check import ExportDiffers, check_against_torch
from export.graph import write_graph
from tests.export.models import GRAPHS

# float16 first: a parallel run of test_graph.py exports the float32 ones meanwhile, and both share one store.
BOTH = [(*g, "float16") for g in GRAPHS if g != ("sd", "vae_decoder")] + [(*g, "float32") for g in GRAPHS]


@pytest.mark.parametrize(("source_name", "name", "dtype"), BOTH)
def test_the_graph_equals_torch_at_other_shapes(graph, tmp_path, source_name, name, dtype):
    source, component, model = graph(source_name, name, dtype)
    write_graph(model, tmp_path / "model.onnx")
    rows = check_against_torch(tmp_path / "model.onnx", source, component, dtype)
    assert len(rows) == len(component.row.outputs) * 2
    exported = component.row.inputs(component.config, component.row.export_shapes, torch.float32, torch.Generator())
    assert all(row["shapes"] != {k: list(v.shape) for k, v in exported.items()} for row in rows)
    assert max(r["max_abs"] for r in rows) > 0.1


def test_a_wrong_graph_is_caught_and_named(graph, tmp_path):
    source, component, model = graph("flux", "text_encoder_2")
    model = model.clone()
    value = model.graph.initializers["encoder.final_layer_norm.weight"]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    write_graph(model, tmp_path / "model.onnx")
    with pytest.raises(ExportDiffers, match="text_encoder_2.*last_hidden_state.*float32"):
        check_against_torch(tmp_path / "model.onnx", source, component, "float32")
