"""ExtendBranch and MergeWeights: a LoRA adds its product to a layer, in both forms, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from artifact.errors import UserError
from passes.fuse import define, template
from passes.lora import Added, ExtendBranch, ranks
from passes.merge import MergeWeights
from passes.presets import plugin_form
from passes.write import write_model
from plugins.svdq_linear import reference, spec
from plugins.svdq_linear.spec import Variant
from tests.passes.nodewise import alone, svdq_nodes
from tests.passes.plugin_nodes import attributes, compute, constants, one_node, unpacked

CASES = [  # (variant, n, k, rank): with and without a branch, weight-only, whole blocks and none
    (Variant(), 64, 128, 32),
    (Variant(act_signed=False, act_shift=spec.GELU_SHIFT, activation="gelu_tanh"), 192, 64, 16),
    (Variant(group_size=128), 32, 88, 16),
    (Variant(branch=False), 100, 200, 0),
    (Variant(act_bits=16, branch=False), 8, 64, 0),
]


def lora(n: int, k: int, rank: int) -> tuple[Added, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * k + rank)
    down = (rng.standard_normal((k, rank)) / 8).astype(np.float32)
    up = (rng.standard_normal((rank, n)) / 4).astype(np.float32)
    return Added(rank, lambda: down, lambda: up), down, up


def callable_node(variant: Variant, n: int, k: int, rank: int, dtype: str = "float16") -> ir.Model:
    """One portable node that onnxruntime can run."""
    model = one_node(variant, n, k, rank, dtype)
    pattern = template(variant, k)
    define(model, pattern)
    svdq_nodes(model)[0].overload = pattern.overload
    return model


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    (node,) = svdq_nodes(model)
    return ort.InferenceSession(alone(model, node), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(("variant", "n", "k", "rank"), CASES)
@pytest.mark.parametrize("extra", [4, 16, 24])
def test_a_layer_gains_the_product_and_nothing_else(variant: Variant, n: int, k: int, rank: int, extra: int) -> None:
    model, base = (callable_node(variant, n, k, rank) for _ in range(2))
    added, down, up = lora(n, k, extra)
    ExtendBranch({"layer": added}, ranks(model))(model)
    (node,) = svdq_nodes(model)
    before, after = constants(svdq_nodes(base)[0]), constants(node)
    assert node.attributes["rank"].as_int() == after["down"].shape[1] == spec.padded_rank(rank + extra)
    for name in ("qweight", "wscale", "inv_smooth", "bias"):
        np.testing.assert_array_equal(after[name].astype(np.float32), before[name].astype(np.float32))
    if rank:
        np.testing.assert_array_equal(after["down"][:, :rank], before["down"])
        np.testing.assert_array_equal(after["up"][:rank], before["up"])
    np.testing.assert_array_equal(after["down"][:, rank : rank + extra], down.astype(np.float16))
    assert not after["down"][:, rank + extra :].any() and not after["up"][rank + extra :].any()

    x = np.random.default_rng(1).standard_normal((9, k)).astype(np.float16)
    y, tolerance = compute_portable(node, x)
    assert reference.agrees(run(model, x), y, tolerance).all()
    if variant.activation == "none":
        gained = run(model, x).astype(np.float64) - run(base, x).astype(np.float64)
        exact = x.astype(np.float64) @ down @ up
        rounding = 2.0**-10 * (np.abs(y.astype(np.float64)) + np.abs(x) @ np.abs(down) @ np.abs(up))
        assert (np.abs(gained - exact) <= 2 * rounding).all()
        assert (np.abs(exact) > 2 * rounding).mean() > 0.5  # the bound would see a LoRA that is left out


def compute_portable(node: ir.Node, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    variant = Variant.from_attributes(attributes(node), branch=True)
    weights = constants(node)
    weights["qweight"] = weights["qweight"].astype(np.int8)
    return reference.svdq_linear(x, *(weights[name] for name in spec.INPUTS[1:]), variant)


@pytest.mark.parametrize(("variant", "n", "k", "rank"), CASES)
@pytest.mark.parametrize(("reserve", "extra"), [(0, 8), (32, 24), (16, 24)])
def test_the_plugin_form_gains_what_the_portable_one_does(
    variant: Variant, n: int, k: int, rank: int, reserve: int, extra: int
) -> None:
    portable = one_node(variant, n, k, rank)
    lowered = plugin_form(reserve)(one_node(variant, n, k, rank)).model
    before = attributes(svdq_nodes(lowered)[0])
    shapes = [tuple(v.shape) for v in svdq_nodes(lowered)[0].inputs[1:]]
    added, _, _ = lora(n, k, extra)
    own = ranks(portable)
    ExtendBranch({"layer": added}, own)(portable)
    ExtendBranch({"layer": added}, own)(lowered)
    (node,) = svdq_nodes(lowered)
    fits = spec.padded_rank(rank + extra) <= before["rank"]
    assert fits == (reserve >= extra)
    if fits:  # an engine can be refitted: the node is the very same but for the numbers in down and up
        assert attributes(node) == before and [tuple(v.shape) for v in node.inputs[1:]] == shapes
    assert node.attributes["rank"].as_int() == max(before["rank"], spec.padded_rank(rank + extra))
    assert [v.name for v in node.inputs[1:]] == [f"layer.{name}" for name in spec.INPUTS[1:]]
    packed, wanted = constants(node), constants(svdq_nodes(portable)[0])
    for value in node.inputs[1:]:
        assert tuple(value.shape) == value.const_value.numpy().shape
    found = unpacked(packed, n, k, variant.group_size)
    own_rank = wanted["down"].shape[1]
    np.testing.assert_array_equal(found["down"][:, :own_rank], wanted["down"])
    np.testing.assert_array_equal(found["up"][:own_rank], wanted["up"])
    assert not found["down"][:, own_rank:].any()

    x = np.random.default_rng(2).standard_normal((5, k)).astype(np.float16)
    np.testing.assert_array_equal(
        compute(x, packed, attributes(node))[0], compute_portable(svdq_nodes(portable)[0], x)[0]
    )


def test_a_layer_that_the_graph_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="other is no 4-bit layer"):
        ExtendBranch({"other": lora(64, 64, 4)[0]}, {"other": 0})(one_node(Variant(), 64, 64, 16))


def sixteen_bit(weight: np.ndarray) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(["M", weight.shape[0]]), type=ir.TensorType(ir.DataType.FLOAT16))
    w = ir.Value(name="fc.weight", const_value=ir.tensor(weight, name="fc.weight"))
    w.type, w.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape(weight.shape)
    node = ir.node("MatMul", [x, w], name="fc")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT16)
    return ir.Model(
        ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20}, name="g"), ir_version=10
    )


def test_a_sixteen_bit_weight_is_summed_in_float32_and_rounded_once() -> None:
    weight = np.full((64, 64), 1024, np.float16)  # whose next neighbour is 1 away
    model = sixteen_bit(weight)
    MergeWeights({"fc.weight": lambda: np.full((64, 64), 0.75, np.float32)})(model)
    np.testing.assert_array_equal(model.graph.initializers["fc.weight"].const_value.numpy(), weight + np.float16(1))
    with pytest.raises(ValueError, match="other is no weight"):
        MergeWeights({"other": lambda: weight})(model)


def test_a_sum_beyond_float16_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = sixteen_bit(np.full((64, 64), 60000, np.float16))
    MergeWeights({"fc.weight": lambda: np.full((64, 64), 1e4, np.float32)})(model)
    with pytest.raises(UserError, match="reaches 7e.04, beyond float16: give a smaller --strength"):
        write_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
