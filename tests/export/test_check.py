"""Exported graphs equal torch at sizes that they were not exported at, and a wrong one is caught."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export import check
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


def test_float16_graphs_may_be_as_far_off_as_torch_s_own_float16_and_not_much_further(graph, tmp_path, monkeypatch):
    monkeypatch.setitem(check.LIMIT, "float16", 1e-6)  # as if every rounding were amplified
    source, component, model = graph("sd", "unet", "float16")
    write_graph(model, tmp_path / "model.onnx")
    rows = check_against_torch(tmp_path / "model.onnx", source, component, "float16")
    assert all(1e-6 < r["relative"] <= r["allowed"] < 5e-2 for r in rows)
    value = model.graph.initializers["conv_in.weight"]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float16(1.1), name=value.name)
    write_graph(model, tmp_path / "wrong.onnx")
    with pytest.raises(ExportDiffers, match="unet.*float16"):
        check_against_torch(tmp_path / "wrong.onnx", source, component, "float16")


def test_what_stands_in_the_way_of_a_comparison_is_told(monkeypatch):
    monkeypatch.setattr(check, "available_bytes", lambda: 10 * 10**9)
    assert check.obstacle(True, 10**9) is None
    assert "--keep-fp16" in check.obstacle(False, 1)
    assert check.obstacle(True, 2 * 10**9) == "that takes 16 GB of memory, 10 GB are free"
    assert check.obstacle(True, 10**9, 8 * 10**9) is None
    assert check.obstacle(True, 10**9, 7 * 10**9) == "that takes 8.0 GB of memory, --max-memory is 7.0 GB"


def test_inputs_that_overflow_torch_s_own_float16_are_drawn_again(graph, tmp_path, monkeypatch):
    source, component, model = graph("sd", "unet", "float16")
    write_graph(model, tmp_path / "model.onnx")
    halved, drawn = check._halved, []

    class Overflows(torch.nn.Module):
        def forward(self, sample, *_, **__):
            return (torch.full_like(sample, float("nan")),)

    def overflows_at_first(module):
        drawn.append(module)
        return Overflows() if len(drawn) == 1 else halved(module)

    monkeypatch.setattr(check, "_halved", overflows_at_first)
    monkeypatch.setitem(check.LIMIT, "float16", 1e-6)  # so that torch's own float16 is asked at all
    rows = check_against_torch(tmp_path / "model.onnx", source, component, "float16")
    assert len(drawn) == 3 and all(r["relative"] <= r["allowed"] for r in rows)
