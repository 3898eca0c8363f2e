"""Shapes are propagated from concrete inputs without reading any weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from artifact.errors import UserError
from engines.cost.graph import Tensor, read, walk
from tests.engines.cost.graphs import away, model, node


def test_a_reshape_to_a_computed_shape_resolves() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["batch"], axis=0),
        node("Concat", ["batch", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
        node("Expand", ["one", "target"], ["z"]),
    ]
    weights = {"first": np.array([0]), "rest": np.array([-1, 4]), "one": np.ones(1, np.float16)}
    graph = walk(model(nodes[:4], {"x": ["batch", "length"]}, ["y"], weights), {"x": (3, 8)})
    assert graph.ops[-1].outputs[0].shape == (3, 2, 4) == graph.outputs[0].shape
    assert graph.ops[-1].outputs[0].dtype == "FLOAT16"


def test_a_shape_that_is_calculated_resolves() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "a", "b"], ["length"]),
        node("Div", ["length", "two"], ["half"]),
        node("Concat", ["a", "half"], ["begin"], axis=0),
        node("Slice", ["x", "half", "length", "one"], ["y"]),
    ]
    weights = {"a": np.array([1]), "b": np.array([2]), "two": np.array([2]), "one": np.array([1])}
    graph = walk(model(nodes, {"x": ["n", "n"]}, ["y"], weights), {"x": (3, 8)})
    assert graph.ops[-1].outputs[0].shape == (3, 4)


def test_weights_are_counted_and_never_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    onnx.save(model(nodes, {"x": ["n", 1000]}, ["y"], more=[away("w", (1000, 500))]), path)
    graph = read(path, {"x": (7, 1000)})
    assert graph.outputs[0].shape == (7, 500) and graph.weight_bytes == 1_000_000


def test_a_small_integer_tensor_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "nowhere.data").write_bytes(np.array([4], np.int64).tobytes())
    nodes = [node("Expand", ["x", "shape"], ["y"])]
    onnx.save(model(nodes, {"x": [1]}, ["y"], more=[away("shape", (1,), TensorProto.INT64)]), tmp_path / "m.onnx")
    assert read(tmp_path / "m.onnx", {"x": (1,)}).outputs[0].shape == (4,)


def test_a_shape_whose_file_is_gone_is_unknown_and_not_zero(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["y"]), node("Neg", ["y"], ["z"])]
    more = [away("shape", (1,), TensorProto.INT64)]
    onnx.save(model(nodes, {"x": [2, 2]}, ["z"], more=more), tmp_path / "m.onnx")
    graph = read(tmp_path / "m.onnx", {"x": (2, 2)})
    assert graph.outputs[0].shape is None and not graph.ops[1].known


def test_an_operator_without_a_schema_leaves_its_output_unknown() -> None:
    graph = walk(model([node("Odd", ["x"], ["y"], "strange")], {"x": [2]}, ["y"]), {"x": (2,)})
    assert graph.ops[0].title == "strange.Odd" and graph.ops[0].outputs[0].shape is None


def test_other_functions_are_opened_and_the_four_bit_layer_is_kept() -> None:
    inner = [node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["c"])]
    function = helper.make_function("strange", "Twice", ["a"], ["c"], inner, [helper.make_opsetid("", 21)])
    made = model([node("Twice", ["x"], ["y"], "strange")], {"x": [2]}, ["y"])
    made.functions.append(function)
    assert [op.kind for op in walk(made, {"x": (2,)}).ops] == ["Neg", "Abs"]


@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_an_input_shape_that_the_graph_does_not_take_is_refused(shape: tuple[int, ...]) -> None:
    made = model([node("Neg", ["x"], ["y"])], {"x": ["n", 4]}, ["y"])
    with pytest.raises(UserError, match="does not take the shape"):
        walk(made, {"x": shape})
    with pytest.raises(UserError, match="'x' of the graph has no shape"):
        walk(made, {})


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(UserError, match="not an ONNX model"):
        read(tmp_path / "m.onnx", {})


def test_a_node_of_weights_alone_is_constant() -> None:
    nodes = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])]
    graph = walk(model(nodes, {"x": [2, 4]}, ["y"], more=[away("w", (3, 4))]), {"x": (2, 4)})
    assert [op.constant for op in graph.ops] == [True, False]


def test_four_bit_tensors_are_packed_two_to_a_byte() -> None:
    assert Tensor("w", (3, 5), "INT4").nbytes == 8
    assert Tensor("w", None, "INT4").nbytes == 0


def test_shapes_are_those_that_onnxruntime_computes(tmp_path: Path) -> None:
    import onnxruntime as ort

    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        node("Transpose", ["b"], ["c"], perm=[0, 2, 3, 1]),
        node("Split", ["c"], ["d", "e"], axis=3, num_outputs=2),
        node("Pad", ["d", "pads"], ["f"]),
    ]
    weights = {
        "w": np.ones((6, 3, 3, 3), np.float32), "scales": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 0, 0, 0, 0, 0, 2]),
    }  # fmt: skip
    made = model(nodes, {"x": ["n", 3, "h", "w_"]}, ["e", "f"], weights, TensorProto.FLOAT)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": np.zeros((2, 3, 9, 12), np.float32)})
    graph = walk(made, {"x": (2, 3, 9, 12)})
    assert [t.shape for t in graph.outputs] == [v.shape for v in got]


def test_onnxruntimes_own_operators_have_rules() -> None:
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transB=1),
        helper.make_node("QuickGelu", ["y"], ["z"], domain="com.microsoft"),
    ]
    graph = walk(model(nodes, {"x": [2, 3, 4]}, ["z"], more=[away("w", (5, 4))]), {"x": (2, 3, 4)})
    assert graph.outputs[0].shape == (2, 3, 5)
