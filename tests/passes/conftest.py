"""Solved layers for small graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from passes.layers import find_layers, quantised
from passes.linear import find_linears
from passes.policy import Policy
from passes.presets import PRESETS, layered
from passes.solved import Quantised, Solved
from passes.solver import solve_layer

BLOCK_POLICY = Policy(quantise=("attn.*", "proj_mlp", "proj_out", "ff.*"), weight_only=("norm.*",))


@pytest.fixture(scope="session")
def solve() -> Callable[[ir.Model, str, str], Solved]:
    """Solve the layers of a model for a preset, on random samples (a GELU's where the layer follows one)."""

    def run(model: ir.Model, preset: str, dtype: str) -> Solved:
        rng = np.random.default_rng(5)
        graph = layered(BLOCK_POLICY)(model.clone()).model.graph
        biases = {linear.name: linear.bias for linear in find_linears(graph)}
        solved = {}
        for layer in quantised(find_layers(graph, BLOCK_POLICY)):
            recipe = PRESETS[preset].recipe(layer, dtype, rank=16)
            recipe = replace(recipe, refine=min(recipe.refine, 2))
            samples = rng.standard_normal((64, layer.k)).astype(np.float32)
            if layer.after_gelu:
                samples = np.maximum(samples, -0.17)
            weight = graph.initializers[f"{layer.name}.weight"].const_value.numpy()
            bias = biases[layer.name]
            solved[layer.name] = Quantised(
                recipe, solve_layer(weight, None if bias is None else bias.const_value.numpy(), samples, recipe)
            )
        return solved

    return run
