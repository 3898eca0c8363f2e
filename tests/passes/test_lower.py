"""LowerToPlugin and LowerOpset: the plugin form is the portable form, packed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engines.external import pieces
from passes.lower import LowerToPlugin
from passes.opset import LowerOpset
from passes.presets import PRESETS, plugin_form
from passes.solved import Solved
from passes.write import write_model
from plugins.svdq_linear import layout, spec
from plugins.svdq_linear.spec import Variant
from tests.passes.conftest import BLOCK_POLICY
from tests.passes.graphs import WIDTH, block, ops, run
from tests.passes.nodewise import oracle, svdq_nodes
from tests.passes.plugin_nodes import attributes, compute, constants, evaluate, one_node, unpacked

Solve = Callable[[ir.Model, str, str], Solved]
CPP = Path(spec.__file__).parent / "tensorrt" / "fields.h"

PLAIN = Variant(branch=False)
VARIANTS = [  # (variant, n, k, rank): whole blocks, and every way of being none
    (Variant(), 64, 128, 32),
    (Variant(act_signed=False, act_shift=spec.GELU_SHIFT, activation="gelu_tanh"), 192, 64, 16),
    (Variant(group_size=128), 32, 88, 16),
    (PLAIN, 100, 200, 0),
    (PLAIN, 64, 4096, 0),  # scales are as many one way as the other, and turned all the same
    (Variant(act_bits=8, activation="silu"), 320, 72, 48),
    (Variant(act_bits=16, branch=False), 8, 64, 0),
]


@pytest.fixture
def portable(solve: Solve) -> Callable[[str], ir.Model]:
    """The block in float16, in the portable form of a preset."""

    def make(preset: str) -> ir.Model:
        model = block("float16")
        return PRESETS[preset].apply(model, BLOCK_POLICY, solve(model, preset, "float16"))

    return make


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype or name == "qweight", name
        np.testing.assert_array_equal(a[name].astype(np.float64), b[name].astype(np.float64), err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("variant", "n", "k", "rank"), VARIANTS)
def test_packed_constants_are_the_layout_s_and_unpack_to_the_portable_ones(
    variant: Variant, n: int, k: int, rank: int, dtype: str
) -> None:
    model = one_node(variant, n, k, rank, dtype)
    before = constants(svdq_nodes(model)[0])
    (node,) = svdq_nodes(plugin_form()(model).model)
    after = constants(node)
    order = ("qweight", "wscale", "inv_smooth", "down", "up", "bias")
    packed = layout.pack(*(before.get(name) for name in order), variant.group_size)._asdict()
    equal(after, {name: array for name, array in packed.items() if array is not None})
    equal(unpacked(after, n, k, variant.group_size), before)
    assert after["qweight"].dtype == np.int32
    for value in node.inputs[1:]:  # what was announced before packing is what came
        assert tuple(value.shape) == tuple(value.const_value.shape) == value.const_value.numpy().shape
        assert value.dtype == value.const_value.dtype


@pytest.mark.parametrize(("variant", "n", "k", "rank"), VARIANTS)
def test_a_float32_layer_computes_in_the_narrower_type_between_casts(
    variant: Variant, n: int, k: int, rank: int
) -> None:
    model = one_node(variant, n, k, rank, "float32")
    before = constants(svdq_nodes(model)[0])
    lowered = plugin_form(narrow=ir.DataType.BFLOAT16)(model).model
    (node,) = svdq_nodes(lowered)
    rounded = {name: a if name == "qweight" else a.astype(ml_dtypes.bfloat16) for name, a in before.items()}
    equal(unpacked(constants(node), n, k, variant.group_size), rounded)
    assert {v.dtype for v in node.inputs[2:]} == {ir.DataType.BFLOAT16}
    x = np.random.default_rng(0).standard_normal((5, k)).astype(np.float32)
    y = compute(x.astype(ml_dtypes.bfloat16), constants(node), attributes(node))[0]
    found = evaluate(lowered, x=x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, y.astype(np.float32))


def test_layers_that_read_one_float32_tensor_share_its_cast(solve: Solve) -> None:
    model = block("float32")
    portable = PRESETS["w4a16"].apply(model, BLOCK_POLICY, solve(model, "w4a16", "float32"))
    read = {node.inputs[0] for node in svdq_nodes(portable)}
    lowered = plugin_form(narrow=ir.DataType.BFLOAT16)(portable).model
    nodes = svdq_nodes(lowered)
    casts = {node.inputs[0].producer() for node in nodes}
    assert len(casts) == len(read) < len(nodes) and {c.op_type for c in casts} == {"Cast"}
    assert lowered.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_a_node_says_all_that_the_plugin_asks() -> None:
    variant = Variant(act_signed=False, act_shift=spec.GELU_SHIFT, activation="gelu_tanh")
    (node,) = svdq_nodes(plugin_form()(one_node(variant, 100, 88, 16)).model)
    assert attributes(node) == {
        "n": 100, "k": 88, "rank": 16, "group_size": 64, "act_bits": 4, "act_signed": 0, "act_shift": 0.171875,
        "activation": "gelu_tanh", "layout_version": layout.LAYOUT_VERSION, "plugin_version": "1",
        "plugin_namespace": "",
    }  # fmt: skip
    assert node.attributes["act_shift"].type == ir.AttributeType.FLOAT
    assert (node.name, node.domain, node.op_type, node.overload) == ("layer", "svdq", "SvdqLinear", "")
    assert node.metadata_props == {"svdq.scope": "module"}
    names = [v.name for v in node.inputs]
    assert names == ["x", *(f"layer.{n}" for n in ("qweight", "wscale", "inv_smooth", "down", "up", "bias"))]
    (plain,) = svdq_nodes(plugin_form()(one_node(PLAIN, 64, 64)).model)
    assert [v.name for v in plain.inputs][1:] == [f"layer.{n}" for n in ("qweight", "wscale", "inv_smooth", "bias")]
    assert attributes(plain)["rank"] == 0


def test_python_and_the_shell_agree_on_the_plugin_s_name_and_attributes() -> None:
    names = dict(re.findall(r'constexpr char kPlugin(\w+)\[\] = "(.*)";', CPP.read_text()))
    assert names == {"Name": spec.OP_TYPE, "Version": spec.PLUGIN_VERSION, "Namespace": spec.PLUGIN_NAMESPACE}
    rows = set(re.findall(r'^ *\{"(\w+)", k', CPP.with_name("fields.cpp").read_text(), re.MULTILINE)) - {"dtype"}
    (node,) = svdq_nodes(plugin_form()(one_node(PLAIN, 64, 64)).model)
    assert rows == set(attributes(node)) - {"plugin_version", "plugin_namespace"}


@pytest.mark.parametrize("preset", ["int4-rtn", "w4a16", "svdq-w4a8", "svdq-int4"])
def test_every_plugin_node_computes_what_its_portable_node_does(portable: Callable, preset: str) -> None:
    model = portable(preset)
    before = {str(n.name): n for n in svdq_nodes(model)}
    wanted = {}
    rng = np.random.default_rng(0)
    for name, node in before.items():
        x = rng.standard_normal((9, int(node.inputs[1].shape[1]))).astype(np.float16)
        wanted[name] = x, *oracle(node, x)
    lowered = plugin_form(at_least=len(before))(model).model
    assert {str(n.name) for n in svdq_nodes(lowered)} == set(wanted)
    for node in svdq_nodes(lowered):
        x, y, tolerance = wanted[str(node.name)]
        found = compute(x, constants(node), attributes(node))
        np.testing.assert_array_equal(found[0], y)
        np.testing.assert_array_equal(found[1], tolerance)


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((2, 5, WIDTH)), "emb": rng.standard_normal((2, WIDTH))}
    return {name: value.astype(np.float16) for name, value in feeds.items()}


@pytest.mark.parametrize("preset", ["int4-rtn", "svdq-int4"])
def test_the_lowered_graph_computes_the_portable_one_bit_for_bit(
    portable: Callable, preset: str, feeds: dict[str, np.ndarray]
) -> None:
    model = portable(preset)
    before = evaluate(model, **feeds)
    after = evaluate(plugin_form()(model).model, **feeds)
    assert after.dtype == np.float16 and after.shape == (2, 5, WIDTH) and np.abs(after).max() > 1
    np.testing.assert_array_equal(after, before)


def test_the_lowered_graph_computes_what_onnxruntime_makes_of_the_portable_one(
    portable: Callable, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = portable("w4a16")  # nothing is rounded to 4 bits on the way, where a last bit could become a whole step
    before = run(model.clone(), tmp_path, **feeds).astype(np.float64)
    after = evaluate(plugin_form()(model).model, **feeds)
    assert np.abs(after - before).max() < 2e-3 * np.abs(before).max()


def test_nothing_of_the_portable_form_is_left(portable: Callable, tmp_path: Path) -> None:
    model = portable("svdq-int4")
    others = {k: v for k, v in ops(model).items() if k != "SvdqLinear"}
    lowered = plugin_form()(model).model
    assert not lowered.functions and lowered.opset_imports == {"": 20, "svdq": 1}
    assert {k: v for k, v in ops(lowered).items() if k != "SvdqLinear"} == others
    assert {v.dtype for v in lowered.graph.initializers.values()} == {
        ir.DataType.INT32, ir.DataType.FLOAT16, ir.DataType.INT64
    }  # fmt: skip
    ir.save(lowered, tmp_path / "lowered.onnx")
    onnx.checker.check_model(str(tmp_path / "lowered.onnx"), full_check=True)


@pytest.mark.parametrize(
    ("rank", "reserve", "whole"), [(16, 8, 32), (16, 16, 32), (0, 1, 16), (32, 0, 32), (16, 32, 48)]
)
def test_reserved_rank_is_zeros_behind_the_branch_and_changes_no_result(rank: int, reserve: int, whole: int) -> None:
    variant = Variant(branch=rank > 0)
    model = one_node(variant, 72, 88, rank)
    (node,) = svdq_nodes(model)
    before, x = constants(node), np.random.default_rng(4).standard_normal((5, 88)).astype(np.float16)
    y = oracle(node, x)[0]
    (node,) = svdq_nodes(plugin_form(reserve)(model).model)
    assert attributes(node)["rank"] == whole and [v.name for v in node.inputs][4:6] == ["layer.down", "layer.up"]
    found = unpacked(constants(node), 72, 88, 64)
    assert found["down"].shape == (88, whole) and found["up"].shape == (whole, 72)
    for name, kept in (("down", found["down"][:, :rank]), ("up", found["up"][:rank])):
        np.testing.assert_array_equal(kept, before.get(name, kept[:0] if name == "up" else kept[:, :0]))
    assert not found["down"][:, rank:].any() and not found["up"][rank:].any()
    np.testing.assert_array_equal(compute(x, constants(node), attributes(node))[0], y)


def test_a_lora_in_the_reserved_columns_is_the_branch_with_more_rank() -> None:
    variant, rng = Variant(), np.random.default_rng(6)
    model = one_node(variant, 72, 88, 16)
    weights = constants(svdq_nodes(model)[0])
    (node,) = svdq_nodes(plugin_form(reserve_rank=16)(model).model)
    down, up = (rng.standard_normal(s).astype(np.float16) for s in ((88, 16), (16, 72)))
    both = np.concatenate([weights["down"], down], 1), np.concatenate([weights["up"], up])
    swapped = constants(node) | {"down": layout.pack_down(both[0], 128), "up": layout.pack_up(both[1])}
    for name in ("down", "up"):  # a refit takes arrays of the shape that is there
        assert swapped[name].shape == constants(node)[name].shape
    equal(unpacked(swapped, 72, 88, 64), weights | {"down": both[0], "up": both[1]})


def test_weights_are_packed_when_they_are_written_and_released_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(one_node(Variant(), 128, 128, 16), tmp_path / "a.onnx")
    model = ir.load(tmp_path / "a.onnx")
    read = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    packed = []
    real = layout.pack_weight_bytes
    monkeypatch.setattr(layout, "pack_weight_bytes", lambda *a: packed.append(1) or real(*a))
    lowered = plugin_form()(model).model
    assert not packed and all(t.raw is None for t in read)
    write_model(lowered, tmp_path / "b.onnx")
    assert len(packed) == 1 and len(read) == 3 and all(t.raw is None for t in read)  # the codes, down and up


def test_both_forms_share_what_packing_does_not_change(solve: Solve, tmp_path: Path) -> None:
    model = block("float16")
    solved = {n: q for n, q in solve(model, "svdq-int4", "float16").items() if n != "ff.net.2"}
    files = write_model(PRESETS["svdq-int4"].apply(model, BLOCK_POLICY, solved), tmp_path / "p.onnx")
    model = plugin_form()(ir.load(files[-1])).model
    written = write_model(model, tmp_path / "p.trt.onnx", shared=files[:-1])
    assert [f.name for f in written] == ["p.trt.onnx.data", "p.trt.onnx"]
    first = [f.read_bytes() for f in written]
    own = {p for p in pieces(written[-1]) if p.file == written[0]}
    (both,) = pieces(written[-1]) - own
    assert both in pieces(files[-1]) and both.nbytes == 2 * 256 * WIDTH  # ff.net.2.weight
    assert sum(p.nbytes for p in own) == written[0].stat().st_size
    read = ir.load(written[-1]).graph.initializers
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(read[name].const_value.numpy(), value.const_value.numpy(), err_msg=name)
    assert [f.read_bytes() for f in write_model(model, tmp_path / "p.trt.onnx", shared=files[:-1])] == first
    assert str(tmp_path).encode() not in first[1]


def test_a_layout_of_other_shapes_than_announced_is_refused_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plugin_form()(one_node(Variant(), 64, 64, 16)).model
    monkeypatch.setattr(layout, "pack_weight_bytes", lambda packed, channels: np.zeros((1, 1, 256), np.int32))
    with pytest.raises(ValueError, match=r"layer.qweight was packed to \(1, 1, 256\) where \(1, 1, 512\)"):
        write_model(model, tmp_path / "a.onnx")


def test_a_plugin_form_that_tensorrt_would_not_parse_is_refused() -> None:
    model = one_node(PLAIN, 64, 64)
    model.graph.insert_before(model.graph[0], ir.node("Det", [model.graph.inputs[0]], name="other"))
    model.graph[0].outputs[0].name = "det"
    with pytest.raises(ir.passes.PassError) as failed:
        plugin_form()(model)
    assert "other (Det) is no operator" in str(failed.value.__cause__)


def test_float32_graphs_are_refused() -> None:
    with pytest.raises(ValueError, match="layer computes in FLOAT; the plugin has FLOAT16 and BFLOAT16"):
        LowerToPlugin()(one_node(PLAIN, 64, 64, dtype="float32"))


def test_a_weight_that_is_computed_or_read_by_others_is_refused() -> None:
    model = one_node(PLAIN, 64, 64)
    (node,) = svdq_nodes(model)
    node.replace_input_with(4, ir.node("Neg", [node.inputs[4]]).outputs[0])
    with pytest.raises(ValueError, match="layer has no constant bias"):
        LowerToPlugin()(model)
    model = one_node(PLAIN, 64, 64)
    (node,) = svdq_nodes(model)
    model.graph.insert_before(node, ir.node("Neg", [node.inputs[2]], name="other"))
    with pytest.raises(ValueError, match="layer.wscale is read by more than layer"):
        LowerToPlugin()(model)


def opset_21(op_type: str, dtype: ir.DataType, **given: object) -> ir.Model:
    """A model of one node x → y."""
    x = ir.Value(name="x", shape=ir.Shape([4, 8]), type=ir.TensorType(dtype))
    node = ir.node(op_type, [x], given, name="node")
    node.outputs[0].name = "y"
    return ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 21}, name="g"), ir_version=10)


def test_the_opset_is_lowered_only_where_nothing_of_21_is_left() -> None:
    assert LowerOpset()(opset_21("Transpose", ir.DataType.FLOAT16, perm=[1, 0])).model.opset_imports[""] == 20
    assert LowerOpset()(opset_21("Gelu", ir.DataType.FLOAT16)).model.opset_imports[""] == 20
    for model, words in (
        (opset_21("Transpose", ir.DataType.INT4, perm=[1, 0]), r"node \(Transpose\) takes INT4, which opset 20"),
        (opset_21("Cast", ir.DataType.FLOAT, to=ir.DataType.INT4), r"node \(Cast\) takes INT4"),
        (opset_21("QuantizeLinear", ir.DataType.FLOAT), "node is a QuantizeLinear of opset 21"),
        (opset_21("GroupNormalization", ir.DataType.FLOAT), "node is a GroupNormalization of opset 21"),
        (opset_21("Attention", ir.DataType.FLOAT), "node is a Attention of opset 21, which opset 20 does not have"),
    ):
        with pytest.raises(ValueError, match=words):
            LowerOpset()(model)
    unknown = opset_21("Squeeze", ir.DataType.FLOAT)
    unknown.graph.inputs[0].type = None
    with pytest.raises(ValueError, match="takes of an unknown type"):
        LowerOpset()(unknown)
    later = opset_21("Gelu", ir.DataType.FLOAT)
    later.graph.opset_imports[""] = 23
    with pytest.raises(ValueError, match="the graph is opset 23"):
        LowerOpset()(later)


def test_operators_that_the_opset_pass_takes_for_widened_differ_in_types_alone() -> None:
    """The pass's own premise, read from ONNX's definitions."""
    for name in {s.name for s in onnx.defs.get_all_schemas() if not s.domain} - {"GroupNormalization"}:
        if not onnx.defs.has(name, 20, ""):
            continue
        a, b = (onnx.defs.get_schema(name, v, "") for v in (20, 21))
        if name not in ("QuantizeLinear", "DequantizeLinear"):
            assert a.doc == b.doc and set(a.attributes) == set(b.attributes), name
            assert [i.name for i in a.inputs] == [i.name for i in b.inputs], name


def test_a_model_without_solved_layers_lowers_to_itself() -> None:
    model = PRESETS["fp16"].apply(block("float16"), replace(BLOCK_POLICY), {})
    assert model.opset_imports[""] == 20
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert ir.to_proto(plugin_form()(model).model).SerializeToString(deterministic=True) == before
