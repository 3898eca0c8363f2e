"""Sources in float32 and bfloat16 become what the float16 one becomes, as far as their numbers are its own."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from artifact.errors import UserError
from export.check import check_against_torch
from export.components import components
from export.graph import write_graph
from export.graph_cache import prepared
from export.source import Source, open_source
from export.weights import weight_values
from passes.weights import LayerLoader
from tests.export.families import layers_of, solved_layers

KINDS = {"F32": torch.float32, "BF16": torch.bfloat16}


def converted(root: Path, kind: torch.dtype) -> Source:
    """The model with all weights in another dtype."""
    for file in root.glob("*/*.safetensors"):
        save_file({n: t.to(kind) for n, t in load_file(file).items()}, file)
    return open_source(str(root))


@pytest.mark.parametrize("name", KINDS)
def test_the_float16_graph_of_another_source_holds_its_rounded_weights_and_equals_torch(
    flux: Source, copy: Path, store, tmp_path: Path, name: str
) -> None:
    source = converted(copy, KINDS[name])
    component = next(c for c in components(source) if c.name == "transformer")
    index = source.weights("transformer")
    assert {w.dtype for w in index.values()} == {name}
    model = prepared(source, component, "float16", store)
    for value in weight_values(model):
        expected = index[value.name].read().astype(np.float16)
        assert value.const_value.numpy().dtype == np.float16
        assert np.array_equal(value.const_value.numpy(), expected), value.name
    write_graph(model, tmp_path / "model.onnx")
    assert max(r["relative"] for r in check_against_torch(tmp_path / "model.onnx", source, component, "float16")) < 5e-3
    layers = layers_of(component, model)[:3]
    solved = solved_layers(source, component, layers, "float16")
    for layer in layers:
        refs = {n: index[n] for n in (*layer.weights, *layer.biases)}
        weight, bias, _ = LayerLoader(layer, refs, "", None)()
        assert weight.dtype == {"F32": np.float32, "BF16": ml_dtypes.bfloat16}[name]
        assert weight.shape == (layer.n, layer.k) and bias is not None and bias.shape == (layer.n,)
        assert solved[layer.name].layer.error < 0.2
    if name == "F32":  # the numbers are those of the float16 source, so what is solved is, too
        same = solved_layers(flux, component, layers, "float16")
        for layer in layers:
            a, b = same[layer.name].layer, solved[layer.name].layer
            assert {k: v.tobytes() for k, v in a.arrays().items()} == {k: v.tobytes() for k, v in b.arrays().items()}


def test_a_number_beyond_float16_is_named_when_it_would_be_written(copy: Path, store, tmp_path: Path) -> None:
    file = copy / "transformer/diffusion_pytorch_model.safetensors"
    tensors = {n: t.float() for n, t in load_file(file).items()}
    tensors["proj_out.weight"][0, 0] = 1e5
    save_file(tensors, file)
    source = open_source(str(copy))
    component = next(c for c in components(source) if c.name == "transformer")
    with pytest.raises(UserError, match=r"proj_out.weight reaches 1e\+05, beyond float16: build with --dtype float32"):
        write_graph(prepared(source, component, "float16", store), tmp_path / "model.onnx")
