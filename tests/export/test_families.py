"""Every family: its graphs equal torch, its denoiser becomes 4-bit and runs, and TensorRT's parser takes both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export.check import check_against_torch
from export.components import components
from export.fake_module import fake_module
from export.graph import write_graph
from export.graph_cache import prepared
from export.source import open_source
from passes.policy import Policy
from passes.presets import PRESETS, plugin_form
from passes.verify_tensorrt import is_plugin, objection
from passes.write import write_model
from tests.export import models
from tests.export.families import Graph, layers_of, policy_of, relative, run, solved_layers

MODELS: dict[str, Callable[[Path], Path]] = {
    "sd21": models.stable_diffusion_21,
    "sdxl_turbo": models.stable_diffusion_xl_turbo,
    "sd3": models.stable_diffusion_3,
}
DENOISERS = [("sd21", "unet"), ("sdxl_turbo", "unet"), ("sd3", "transformer")]
OTHERS = [("sd21", "text_encoder"), ("sd3", "text_encoder_3")]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, store) -> Graph:
    """(model, component, dtype) → (source, component, graph), each model saved once."""
    sources = {}

    def get(name: str, part: str, dtype: str = "float32"):
        if name not in sources:
            sources[name] = open_source(str(MODELS[name](tmp_path_factory.mktemp("families") / name)))
        component = next(c for c in components(sources[name]) if c.name == part)
        return sources[name], component, prepared(sources[name], component, dtype, store)

    return get


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("name", "part"), DENOISERS + OTHERS)
def test_the_graph_equals_torch_at_other_sizes_and_batches(
    family: Graph, tmp_path: Path, name: str, part: str, dtype: str
) -> None:
    source, component, model = family(name, part, dtype)
    write_graph(model, tmp_path / "model.onnx")
    rows = check_against_torch(tmp_path / "model.onnx", source, component, dtype)
    assert len({str(r["shapes"]) for r in rows}) == 2
    assert max(r["relative"] for r in rows) <= {"float32": 1e-4, "float16": 5e-3}[component.dtype(dtype)]
    assert max(r["max_abs"] for r in rows) > 0.05
    assert objection(model) is None


@pytest.mark.parametrize(("name", "part"), DENOISERS)
def test_the_denoiser_becomes_four_bit_and_runs_at_other_sizes(
    family: Graph, tmp_path: Path, name: str, part: str
) -> None:
    source, component, model = family(name, part, "float16")
    layers = layers_of(component, model)
    solved = solved_layers(source, component, layers, "float16")
    PRESETS["fp16"].apply(baseline := model.clone(), Policy(), {})
    write_model(baseline, tmp_path / "fp16.onnx")
    portable = PRESETS["svdq-int4"].apply(model.clone(), policy_of(component), solved)
    write_model(portable, tmp_path / "svdq-int4.onnx")
    for number in range(len(component.row.check_shapes)):
        found, expected = (run(tmp_path / f"{p}.onnx", component, number, "float16") for p in ("svdq-int4", "fp16"))
        assert np.isfinite(found).all() and found.shape == expected.shape
        assert 1e-4 < relative(found, expected) < 0.35
    lowered = plugin_form(at_least=len(layers))(portable.clone()).model  # refuses what TensorRT does not parse
    assert {str(n.name) for n in lowered.graph if is_plugin(n)} == {layer.name for layer in layers}


@pytest.mark.parametrize(("name", "part"), DENOISERS)
def test_every_linear_is_named_by_one_list_only(family: Graph, name: str, part: str) -> None:
    from fnmatch import fnmatchcase

    _, component, _ = family(name, part)
    module, _ = fake_module(component, "float16")
    for linear, child in module.named_modules():
        if isinstance(child, torch.nn.Linear):
            row = component.row
            globs = {"quantise": row.quantise, "weight_only": row.weight_only, "keep": row.keep}
            lists = [kind for kind in globs if any(fnmatchcase(linear, g) for g in globs[kind])]
            assert len(lists) == 1, (linear, lists)
