"""LowRankBranch, Int4Qdq, AbsorbActivation, FuseSvdqLinear and the presets made of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx_ir.passes.common import RemoveUnusedNodesPass

from passes.activation import AbsorbActivation
from passes.branch import LowRankBranch
from passes.emit import initializer
from passes.fuse import FuseSvdqLinear
from passes.opset import PortableOpset
from passes.presets import PRESETS, layered
from passes.qdq import Int4Qdq
from passes.solved import Quantised, Solved
from passes.solver import SolvedLayer
from passes.verify import VerifyGraph
from tests.passes.conftest import BLOCK_POLICY
from tests.passes.graphs import WIDTH, GraphBuilder, block, ops, run
from tests.passes.nodewise import disagreements, svdq_nodes, variant_of

Solve = Callable[[ir.Model, str, str], Solved]


def feeds(dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((2, 5, WIDTH)).astype(dtype), "emb": rng.standard_normal((2, WIDTH)).astype(dtype)}


def relative(y: np.ndarray, reference: np.ndarray) -> float:
    y, reference = y.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_low_rank_branch_alone_keeps_the_function(tmp_path: Path, solve: Solve, dtype: str) -> None:
    before = run(block(dtype), tmp_path, **feeds(dtype))
    model = block(dtype)
    solved = solve(model, "svdq-int4", dtype)
    model = layered(BLOCK_POLICY)(model).model
    LowRankBranch(solved)(model)
    assert relative(run(model, tmp_path, **feeds(dtype)), before) < (1e-5 if dtype == "float32" else 2e-3)
    names = set(model.graph.initializers)
    assert {"attn.to_qkv.down", "attn.to_qkv.up"} <= names and "norm.linear.down" not in names


def test_the_residual_is_the_weight_less_the_branch(solve: Solve) -> None:
    model = block()
    solved = solve(model, "svdq-int4", "float32")
    weight = model.graph.initializers["ff.net.2.weight"].const_value.numpy()
    LowRankBranch({"ff.net.2": solved["ff.net.2"]})(model)
    residual = model.graph.initializers["ff.net.2.weight"].const_value.numpy()
    layer = solved["ff.net.2"].layer
    np.testing.assert_allclose(residual + (layer.down @ layer.up).T, weight, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("preset", ["int4-rtn", "w4a16", "svdq-w4a8", "svdq-int4"])
def test_a_preset_gives_one_node_per_layer_and_each_equals_the_oracle(
    tmp_path: Path, solve: Solve, preset: str, dtype: str
) -> None:
    before = run(block(dtype), tmp_path, **feeds(dtype))
    model = block(dtype)
    solved = solve(model, preset, dtype)
    model = PRESETS[preset].apply(model, BLOCK_POLICY, solved)
    after = run(model, tmp_path, **feeds(dtype))
    assert relative(after, before) < {"int4-rtn": 0.3, "w4a16": 0.2, "svdq-w4a8": 0.2, "svdq-int4": 0.3}[preset]
    assert {str(n.name) for n in svdq_nodes(model)} == set(solved)
    assert not {"DequantizeLinear", "QuantizeLinear", "Gelu"} & set(ops(model))
    for name, wrong, worst in disagreements(model):
        assert wrong == 0, f"{name}: {wrong} elements beyond the bound, the worst at {worst:.2f} of it"


def test_variants_are_what_the_preset_promises(solve: Solve) -> None:
    model = block()
    model = PRESETS["svdq-int4"].apply(model, BLOCK_POLICY, solve(model, "svdq-int4", "float32"))
    variants = {str(n.name): variant_of(n) for n in svdq_nodes(model)}
    tail = variants["proj_out.1"]
    assert not tail.act_signed and tail.act_shift == 0.171875 and tail.act_bits == 4
    assert variants["proj_out.0"].act_signed and variants["attn.to_qkv"].branch
    assert variants["proj_mlp"].activation == variants["ff.net.0.proj"].activation == "gelu_tanh"
    assert variants["norm.linear"].act_bits == 16 and not variants["norm.linear"].branch
    assert len(model.functions) == len(set(variants.values()))


def test_w4a8_quantises_activations_to_eight_bits_and_rtn_has_no_branch(solve: Solve) -> None:
    for preset, bits, branch in (("svdq-w4a8", 8, True), ("int4-rtn", 4, False), ("w4a16", 16, False)):
        model = block()
        model = PRESETS[preset].apply(model, BLOCK_POLICY, solve(model, preset, "float32"))
        variant = variant_of(next(n for n in svdq_nodes(model) if n.name == "attn.to_qkv"))
        assert (variant.act_bits, variant.branch) == (bits, branch)


def test_a_layer_that_is_not_solved_is_left_alone(solve: Solve) -> None:
    model = block()
    solved = {n: q for n, q in solve(model, "svdq-int4", "float32").items() if n != "ff.net.2"}
    model = PRESETS["svdq-int4"].apply(model, BLOCK_POLICY, solved)
    assert "ff.net.2" not in {n.name for n in svdq_nodes(model)}
    assert "ff.net.2.weight" in model.graph.initializers and "proj_mlp.weight" not in model.graph.initializers


def test_a_solved_layer_that_the_graph_lacks_is_refused(solve: Solve) -> None:
    model = block()
    solved = dict(solve(model, "int4-rtn", "float32"))
    solved["nowhere"] = solved["ff.net.2"]
    with pytest.raises(ValueError, match="no linear nowhere"):
        Int4Qdq(solved)(layered(BLOCK_POLICY)(model).model)


def test_int4_qdq_writes_the_solver_s_arrays_and_drops_the_16_bit_weight(solve: Solve) -> None:
    model = layered(BLOCK_POLICY)(block("float16")).model
    solved = solve(block("float16"), "svdq-int4", "float16")
    Int4Qdq(solved)(model)
    initializers = model.graph.initializers
    for name, found in solved.items():
        for field in ("qweight", "wscale", "inv_smooth", "bias"):
            written = initializers[f"{name}.{field}"].const_value.numpy()
            assert (written.astype(np.float32) == getattr(found.layer, field).astype(np.float32)).all(), (name, field)
        assert f"{name}.weight" not in initializers


class Passing(Mapping[str, Quantised]):
    """Solved layers that are made anew at every reading, as the store's are, and counted while they live."""

    def __init__(self, solved: Solved) -> None:
        self._solved, self.alive = solved, weakref.WeakSet[SolvedLayer]()

    def __getitem__(self, name: str) -> Quantised:
        found = self._solved[name]
        layer = replace(found.layer, bias=found.layer.bias.copy())
        self.alive.add(layer)
        return Quantised(found.recipe, layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._solved)

    def __len__(self) -> int:
        return len(self._solved)


def test_a_rewritten_graph_holds_no_solved_layer_in_memory_and_still_has_their_arrays(solve: Solve) -> None:
    model = block("float32")
    solved = solve(model, "svdq-int4", "float32")
    passing = Passing(solved)
    made = PRESETS["svdq-int4"].apply(model, BLOCK_POLICY, passing)
    gc.collect()
    assert not passing.alive
    for name, found in solved.items():
        for field in ("qweight", "wscale", "inv_smooth", "bias", *(("down", "up") if found.rank else ())):
            tensor = made.graph.initializers[f"{name}.{field}"].const_value
            array = tensor.numpy()
            assert np.array_equal(array.astype(np.float32), getattr(found.layer, field).astype(np.float32)), field
    del tensor, array
    gc.collect()
    assert not passing.alive


def silu_model(other_reader: str | None) -> ir.Model:
    b = GraphBuilder()
    y = b.linear("attn.fc", "x", 64, 64)
    z = b.node("Mul", [y, b.node("Sigmoid", [y])])
    other = {"Add": ["x", y], "Mul": ["x", y], "Sigmoid": [y]}
    b.rename(b.node("Add", [z, b.node(other_reader, other[other_reader])]) if other_reader else z, "y")
    return b.model({"x": ["B", 64]}, {"y": ["B", 64]})


def test_silu_is_absorbed_and_computes_the_same(tmp_path: Path, solve: Solve) -> None:
    x = np.random.default_rng(3).standard_normal((7, 64)).astype(np.float32)
    before = run(silu_model(None), tmp_path, x=x)
    model = silu_model(None)
    model = PRESETS["w4a16"].apply(model, BLOCK_POLICY, solve(model, "w4a16", "float32"))
    (node,) = svdq_nodes(model)
    assert variant_of(node).activation == "silu" and ops(model) == {"SvdqLinear": 1}
    assert relative(run(model, tmp_path, x=x), before) < 0.15
    assert all(wrong == 0 for _, wrong, _ in disagreements(model))


@pytest.mark.parametrize("preset", ["svdq-int4", "w4a16"])
def test_a_cast_of_the_model_behind_a_linear_without_bias_stays_the_models(
    tmp_path: Path, solve: Solve, preset: str
) -> None:
    """Attention that is computed in float32, as in Stable Diffusion 2.1."""

    def upcast() -> ir.Model:
        b = GraphBuilder("float16")
        wide = b.node("Cast", [b.linear("attn.to_q", "x", 64, 64, bias=False)], to=TensorProto.FLOAT)
        b.rename(b.node("Cast", [b.node("Softmax", [wide], axis=-1)], to=TensorProto.FLOAT16), "y")
        return b.model({"x": ["B", 64]}, {"y": ["B", 64]})

    x = np.random.default_rng(3).standard_normal((7, 64)).astype(np.float16)
    model = PRESETS[preset].apply(upcast(), BLOCK_POLICY, solve(upcast(), preset, "float16"))
    assert ops(model) == {"SvdqLinear": 1, "Cast": 2, "Softmax": 1}
    assert relative(run(model, tmp_path, x=x).astype(np.float32), run(upcast(), tmp_path, x=x)) < 0.2


@pytest.mark.parametrize("reader", ["Add", "Mul", "Sigmoid"])
def test_an_activation_beside_another_reader_is_not_absorbed(solve: Solve, reader: str) -> None:
    model = silu_model(reader)
    solved = solve(model, "w4a16", "float32")
    Int4Qdq(solved)(model)
    assert not AbsorbActivation(solved)(model).modified


def test_the_erf_gelu_is_not_absorbed(solve: Solve) -> None:
    b = GraphBuilder()
    b.rename(b.node("Gelu", [b.linear("attn.fc", "x", 64, 64)], approximate="none"), "y")
    model = b.model({"x": ["B", 64]}, {"y": ["B", 64]})
    model = PRESETS["w4a16"].apply(model, BLOCK_POLICY, solve(model, "w4a16", "float32"))
    assert ops(model) == {"SvdqLinear": 1, "Gelu": 1}


def test_k_that_ends_inside_a_group_is_padded(tmp_path: Path, solve: Solve) -> None:
    b = GraphBuilder()
    b.rename(b.linear("attn.fc", "x", 88, 32), "y")
    model = b.model({"x": ["B", "S", 88]}, {"y": ["B", "S", 32]})
    model = PRESETS["svdq-int4"].apply(model, BLOCK_POLICY, solve(model, "svdq-int4", "float32"))
    x = np.random.default_rng(3).standard_normal((2, 3, 88)).astype(np.float32)
    assert run(model, tmp_path, x=x).shape == (2, 3, 32)
    assert all(wrong == 0 for _, wrong, _ in disagreements(model))


def test_fusing_refuses_a_pattern_that_differs_and_says_where(solve: Solve) -> None:
    model = layered(BLOCK_POLICY)(block()).model
    solved = solve(block(), "int4-rtn", "float32")
    Int4Qdq(solved)(model)
    clip = next(n for n in model.graph if n.op_type == "Min")
    clip.op_type = "Max"
    with pytest.raises(Exception, match="is Max where Min was expected"):
        FuseSvdqLinear()(model)


def test_verify_refuses_a_preset_that_matched_too_little() -> None:
    with pytest.raises(Exception, match="0 layers were fused where 1"):
        VerifyGraph(at_least=1)(block())


def test_verify_refuses_an_initializer_that_nothing_reads() -> None:
    model = block()
    initializer(model.graph, "dead.weight", ir.tensor(np.zeros((2, 2), np.float32)))
    with pytest.raises(Exception, match="dead.weight is read by nothing"):
        VerifyGraph()(model)


def test_no_16_bit_weight_of_a_quantised_layer_stays_behind(solve: Solve) -> None:
    model = block()
    model = PRESETS["svdq-int4"].apply(model, BLOCK_POLICY, solve(model, "svdq-int4", "float32"))
    assert not [n for n in model.graph.initializers if n.endswith(".weight")]


def test_verify_refuses_int4_weights_outside_the_op(solve: Solve) -> None:
    model = layered(BLOCK_POLICY)(block()).model
    Int4Qdq(solve(block(), "int4-rtn", "float32"))(model)
    RemoveUnusedNodesPass()(model)
    with pytest.raises(Exception, match="INT4 weight outside"):
        VerifyGraph()(model)


def test_the_opset_is_not_raised_past_a_changed_operator() -> None:
    b = GraphBuilder()
    b.weight("scale", np.ones(()))
    b.rename(b.node("DequantizeLinear", [b.node("QuantizeLinear", ["x", "scale"]), "scale"]), "y")
    model = b.model({"x": [4, 8]}, {"y": [4, 8]})
    with pytest.raises(Exception, match="QuantizeLinear"):
        PortableOpset()(model)
