"""Conv1x1ToLinear: the function stays, the layer is found, everything else is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from passes.conv1x1 import Conv1x1ToLinear
from passes.layers import find_layers
from passes.linear import find_linears
from passes.policy import Policy
from passes.presets import PRESETS, layered
from passes.solved import Quantised
from passes.solver import solve_layer
from tests.passes.graphs import GraphBuilder, ops, run
from tests.passes.nodewise import svdq_nodes, variant_of

K, N = 64, 96
ALL = Policy(quantise=("ff.*",))
X = np.random.default_rng(3).standard_normal((2, 5, 7, K)).astype(np.float32)


def conv(bias: bool = True, kernel: int = 1, transposed: bool = True, silu: bool = True, **attributes: object):
    """x [B, h, w, K] → Transpose → Conv → SiLU → y, or the Conv alone on [B, K, h, w]."""
    b = GraphBuilder()
    group = attributes.get("group", 1)
    weight = b.weight("ff.inverted.weight", (b.rng.standard_normal((N, K // group, kernel, kernel)) / 8).astype("f4"))
    inputs = [b.node("Transpose", ["x"], perm=[0, 3, 1, 2]) if transposed else "x", weight]
    if bias:
        inputs.append(b.weight("ff.inverted.bias", b.rng.standard_normal(N).astype("f4")))
    y = b.node("Conv", inputs, kernel_shape=[kernel, kernel], **attributes)
    if silu:
        y = b.node("Mul", [y, b.node("Sigmoid", [y])])
    b.rename(y, "y")
    shape = ["B", "h", "w", K] if transposed else ["B", K, "h", "w"]
    return b.model({"x": shape}, {"y": ["B", N, "H", "W"]})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("silu", [True, False])
def test_the_function_stays_and_the_transposes_cancel(tmp_path: Path, bias: bool, silu: bool) -> None:
    before = run(conv(bias, silu=silu), tmp_path, x=X)
    model = layered(ALL)(conv(bias, silu=silu)).model
    np.testing.assert_allclose(run(model, tmp_path, x=X), before, rtol=1e-4, atol=1e-5)
    (linear,) = find_linears(model.graph)
    assert linear.name == "ff.inverted" and linear.x.name == "x" and (linear.bias is not None) == bias
    assert linear.weight.const_value.numpy().shape == (N, K)
    assert "Conv" not in ops(model)


def test_an_input_that_was_not_transposed_is(tmp_path: Path) -> None:
    x = np.ascontiguousarray(X.transpose(0, 3, 1, 2))
    before = run(conv(transposed=False), tmp_path, x=x)
    model = layered(ALL)(conv(transposed=False)).model
    np.testing.assert_allclose(run(model, tmp_path, x=x), before, rtol=1e-4, atol=1e-5)


def test_the_silu_ends_up_in_the_quantised_layer(tmp_path: Path) -> None:
    before = run(conv(), tmp_path, x=X)
    (layer,) = find_layers(layered(ALL)(conv()).model.graph, ALL)
    weights = {name: value.const_value.numpy() for name, value in conv().graph.initializers.items()}
    recipe = PRESETS["svdq-int4"].recipe(layer, "float32", rank=16)
    found = solve_layer(weights[layer.weights[0]].reshape(N, K), weights["ff.inverted.bias"], X.reshape(-1, K), recipe)
    model = PRESETS["svdq-int4"].apply(conv(), ALL, {layer.name: Quantised(recipe, found)})
    (node,) = svdq_nodes(model)
    assert variant_of(node).activation == "silu" and "Sigmoid" not in ops(model)
    after = run(model, tmp_path, x=X)
    assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before)


@pytest.mark.parametrize(
    "other",
    [
        {"kernel": 3, "pads": [1, 1, 1, 1]},
        {"group": 2},
        {"strides": [2, 2]},
        {"pads": [1, 1, 1, 1]},
    ],
)
def test_other_convolutions_are_left_alone(other: dict) -> None:
    assert not Conv1x1ToLinear(ALL)(conv(**other)).modified


def test_what_the_policy_keeps_is_left_alone() -> None:
    assert not Conv1x1ToLinear(Policy(quantise=("attn.*",)))(conv()).modified


def test_a_weight_that_others_read_is_left_alone() -> None:
    model = conv()
    weight = model.graph.initializers["ff.inverted.weight"]
    model.graph.append(ir.node("Identity", [weight], name="other"))
    assert not Conv1x1ToLinear(ALL)(model).modified
