"""MergeAttentionSiblings and SplitConcatInputs: what they rewrite, keep and leave alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passes.concat import SplitConcatInputs
from passes.layers import find_layers, quantised
from passes.linear import find_linears
from passes.policy import Policy
from passes.siblings import MergeAttentionSiblings
from tests.passes.conftest import BLOCK_POLICY
from tests.passes.graphs import WIDTH, GraphBuilder, block, ops, run

ALL = Policy(quantise=("*",))


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((2, 5, WIDTH)).astype(np.float32),
        "emb": rng.standard_normal((2, WIDTH)).astype(np.float32),
    }


def test_merging_keeps_the_function_and_stacks_q_k_v_in_order(tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    before = run(block(), tmp_path, **feeds)
    model = block()
    parts = {n: model.graph.initializers[f"attn.to_{n}.weight"].const_value.numpy() for n in "qkv"}
    assert MergeAttentionSiblings(BLOCK_POLICY)(model).modified
    np.testing.assert_allclose(run(model, tmp_path, **feeds), before, rtol=1e-4, atol=1e-5)
    names = [linear.name for linear in find_linears(model.graph)]
    assert "attn.to_qkv" in names and "attn.to_q" not in names and "proj_mlp" in names
    merged = model.graph.initializers["attn.to_qkv.weight"].const_value.numpy()
    np.testing.assert_array_equal(merged, np.concatenate([parts[n] for n in "qkv"]))
    assert ops(model)["Split"] == 1


def test_a_missing_bias_is_zeros() -> None:
    model = block()
    MergeAttentionSiblings(BLOCK_POLICY)(model)
    bias = model.graph.initializers["attn.to_qkv.bias"].const_value.numpy()
    assert np.all(bias[WIDTH : 2 * WIDTH] == 0) and np.all(bias[:WIDTH] != 0)


def two_linears(first: str, second: str, other_input: bool = False) -> GraphBuilder:
    b = GraphBuilder()
    a = b.linear(first, "x", 8, 8)
    c = b.linear(second, b.node("Relu", ["x"]) if other_input else "x", 8, 8)
    b.rename(b.node("Add", [a, c]), "y")
    return b


@pytest.mark.parametrize(
    ("first", "second", "other_input"),
    [
        ("attn.to_q", "attn.to_k", True),  # cross-attention: another tensor
        ("a.attn.to_k", "b.attn.to_k", False),  # two blocks
        ("a.attn.to_k", "b.attn.to_v", False),  # k and v of different blocks that read one tensor
        ("attn.to_q", "attn.add_k_proj", False),  # two streams of one block
        ("attn.to_q", "proj_mlp", False),  # a parallel MLP
        ("norm1.linear", "norm1_context.linear", False),  # AdaLN modulations
    ],
)
def test_linears_that_are_no_siblings_are_left_alone(first: str, second: str, other_input: bool) -> None:
    model = two_linears(first, second, other_input).model({"x": ["B", 8]}, {"y": ["B", 8]})
    assert not MergeAttentionSiblings(ALL)(model).modified


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ("attn.to_k", "attn.to_v", "attn.to_kv"),
        ("attn.add_q_proj", "attn.add_v_proj", "attn.add_qv_proj"),
        ("layers.0.self_attn.v_proj", "layers.0.self_attn.q_proj", "layers.0.self_attn.qv_proj"),
        ("SelfAttention.q", "SelfAttention.k", "SelfAttention.qk"),
    ],
)
def test_every_spelling_of_siblings_is_merged(first: str, second: str, merged: str) -> None:
    model = two_linears(first, second).model({"x": ["B", 8]}, {"y": ["B", 8]})
    assert MergeAttentionSiblings(ALL)(model).modified
    assert [linear.name for linear in find_linears(model.graph)] == [merged]


def test_siblings_that_stay_in_16_bits_are_left_alone() -> None:
    model = two_linears("attn.to_k", "attn.to_v").model({"x": ["B", 8]}, {"y": ["B", 8]})
    assert not MergeAttentionSiblings(Policy(quantise=("ff.*",)))(model).modified


def test_splitting_keeps_the_function_and_the_columns(tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    before = run(block(), tmp_path, **feeds)
    model = block()
    whole = model.graph.initializers["proj_out.weight"].const_value.numpy()
    assert SplitConcatInputs(BLOCK_POLICY)(model).modified
    np.testing.assert_allclose(run(model, tmp_path, **feeds), before, rtol=1e-4, atol=1e-5)
    assert "Concat" not in ops(model)
    parts = [model.graph.initializers[f"proj_out.{i}.weight"].const_value.numpy() for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_a_concatenation_that_others_read_or_on_another_axis_is_left_alone() -> None:
    for axis, extra in ((1, False), (2, True)):
        b = GraphBuilder()
        both = b.node("Concat", ["x", "x"], axis=axis)
        b.rename(b.linear("fc", both, 16 if axis == 2 else 8, 8), "y")
        outputs = {"y": ["B", "S", 8]}
        if extra:
            b.rename(b.node("Relu", [both]), "z")
            outputs["z"] = ["B", "S", 16]
        model = b.model({"x": ["B", "S", 8]}, outputs)
        assert not SplitConcatInputs(ALL)(model).modified


def test_layers_say_where_their_weights_and_samples_come_from() -> None:
    model = block()
    for p in (MergeAttentionSiblings(BLOCK_POLICY), SplitConcatInputs(BLOCK_POLICY)):
        p(model)
    layers = {layer.name: layer for layer in find_layers(model.graph, BLOCK_POLICY)}
    qkv, tail = layers["attn.to_qkv"], layers["proj_out.1"]
    assert qkv.weights == ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight")
    assert qkv.biases == ("attn.to_q.bias", None, "attn.to_v.bias")
    assert qkv.module == "attn.to_q" and qkv.input == layers["proj_mlp"].input
    assert (tail.weights, tail.columns, tail.module) == (("proj_out.weight",), (WIDTH, 3 * WIDTH), "proj_out")
    assert tail.input == layers["proj_out.0"].input
    assert {n for n, layer in layers.items() if layer.after_gelu} == {"proj_out.1", "ff.net.2"}
    assert layers["norm.linear"].scheme == "weight-only"
    assert len(quantised(list(layers.values()))) == 7
