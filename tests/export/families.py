"""One graph of a family through all that a build does with it, without the build around it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from artifact import manifest
from artifact.store import Store
from export.components import DTYPES, Component, picture_rule
from export.describe import text_settings
from export.graph import write_graph
from export.source import Source
from passes.layers import Layer, find_layers, quantised
from passes.policy import Policy
from passes.presets import PRESETS, layered
from passes.solved import Quantised, Solved
from passes.solver import solve_layer
from passes.weights import LayerLoader

Graph = Callable[..., tuple[Source, Component, ir.Model]]


def graph_store(factory: pytest.TempPathFactory) -> Store:
    """One for all tests of a run and their parallel workers, so that each graph is exported once."""
    root = factory.getbasetemp()
    return Store((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "graphs")


def layers_of(component: Component, model: ir.Model) -> list[Layer]:
    """The layers of an exported graph that svdq-int4 quantises."""
    policy = policy_of(component)
    return quantised(find_layers(layered(policy)(model.clone()).model.graph, policy))


def policy_of(component: Component) -> Policy:
    """What the family's row says of it."""
    return Policy(component.row.quantise, component.row.weight_only)


def solved_layers(source: Source, component: Component, layers: list[Layer], dtype: str) -> Solved:
    """Every layer solved without samples, read from the source's files as a worker of a build reads it."""
    found = {}
    tensors = source.weights(component.module)
    for layer in layers:
        refs = {name: tensors[name] for name in (*layer.weights, *layer.biases) if name is not None}
        recipe = PRESETS["svdq-int4"].recipe(layer, dtype, rank=16)
        recipe = replace(recipe, refine=min(recipe.refine, 1))
        found[layer.name] = Quantised(recipe, solve_layer(*LayerLoader(layer, refs, "", None)(), recipe))
    return found


def run(path: Path, component: Component, number: int, dtype: str) -> np.ndarray:
    """The graph's first output, float64, at the row's check shapes of this number."""
    inputs = component.row.inputs(
        component.config, component.row.check_shapes[number], DTYPES[dtype], torch.Generator().manual_seed(7)
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v.numpy() for k, v in inputs.items() if k in wanted})[0].astype(np.float64)


def relative(y: np.ndarray, reference: np.ndarray) -> float:
    """Norm of the difference over the norm of the reference."""
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def artifact_of(root: Path, source: Source, graphs: list[tuple[Component, ir.Model]]) -> Path:
    """An artifact of one preset, "fp16", that holds the graphs as they were exported."""
    described: dict[str, Any] = {}
    for component, model in graphs:
        write_graph(model, root / component.name / "fp16.onnx")
        described[component.name] = {
            "role": component.role, "module": component.module, "class": component.cls, "config": component.config,
            "models": {"fp16": f"{component.name}/fp16.onnx"}, "inputs": [v.name for v in model.graph.inputs],
            "outputs": [v.name for v in model.graph.outputs],
        } | text_settings(source, component)  # fmt: skip
    folders = {name: name for name in source.modules if name.startswith(("tokenizer", "scheduler"))}
    for name in folders:
        shutil.copytree(source.root / name, root / name)
    rule = picture_rule(source)
    content: dict[str, Any] = {
        "pictures": rule.to_json() if rule else None,
        "name": root.name, "pipeline": source.pipeline, "source": {"model": "tiny", "sha256": source.sha256},
        "target": "cpu", "dtype": "float32", "versions": {}, "generation": source.generation, "presets": ["fp16"],
        "components": described, "folders": folders, "exports": {}, "layers": {}, "references": {}, "skipped": [],
    }  # fmt: skip
    names = [str(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_file()]
    manifest.write(root, content | {"files": manifest.record(root, names)})
    return root
