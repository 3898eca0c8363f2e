"""VerifyTensorRT and its table: what TensorRT 10.3's parser would refuse is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.dtypes import dtypes
from passes.emit import initializer
from passes.presets import PRESETS, plugin_form
from passes.tensorrt_ops import ALL, OPERATORS, OPSETS
from passes.verify_tensorrt import VerifyTensorRT, objection
from plugins.svdq_linear.spec import Variant
from tests.passes.conftest import BLOCK_POLICY
from tests.passes.graphs import block
from tests.passes.nodewise import svdq_nodes
from tests.passes.plugin_nodes import one_node

F16, F32, F64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
I64, U8, BOOL = TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL


def graph(
    op: str, types: tuple[int, ...] = (F16,), out: int = F16, opset: int = 20, domain: str = "", **attributes: object
) -> ir.Model:
    """A model of one node on inputs a, b, ... of the given types, each [2, 3, 4, 5]."""
    names = "abcd"[: len(types)]
    node = helper.make_node(op, list(names), ["y"], name="node", domain=domain, **attributes)
    values = [helper.make_tensor_value_info(n, t, [2, 3, 4, 5]) for n, t in zip(names, types, strict=True)]
    proto = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", out, None)])
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return ir.from_proto(helper.make_model(proto, opset_imports=imports, ir_version=10))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (graph("Relu", opset=21), "the graph is opset 21; TensorRT 10.3 parses 9 to 20"),
        (graph("Relu", opset=8), "the graph is opset 8"),
        (graph("Det"), r"node \(Det\) is no operator that TensorRT 10.3's parser has"),
        (graph("Relu", domain="com.other"), r"node \(Relu\) is no operator that TensorRT 10.3's parser has"),
        (graph("Loop"), r"node \(Loop\) is no operator"),
        (graph("Gelu", opset=19), r"node \(Gelu\) is no operator of opset 19"),
        (graph("Sigmoid", (I64,), I64), r"node \(Sigmoid\) computes in INT64; .* has BFLOAT16, FLOAT, FLOAT16 for it"),
        (graph("Pow", (F32, I64), F32), r"node \(Pow\) computes in INT64"),
        (graph("Add", (BOOL, BOOL), BOOL), r"node \(Add\) computes in BOOL"),
        (graph("And", (F16, F16), BOOL), r"node \(And\) computes in FLOAT16"),
        (graph("Cast", (F16,), TensorProto.INT4, to=TensorProto.INT4), "INT4"),
        (graph("Identity", (U8,), U8), "a is UINT8; TensorRT 10.3 has no such type for a tensor"),
        (graph("ReduceSum", (F16, I64)), r"node \(ReduceSum\) has an input 1 that is computed; .* needs a constant"),
        (graph("Unsqueeze", (F16, I64)), r"node \(Unsqueeze\) has an input 1 that is computed"),
        (graph("Resize", mode="cubic"), r"node \(Resize\) has mode cubic; TensorRT 10.3 has nearest, linear"),
        (graph("Resize", antialias=1), r"node \(Resize\) has antialias 1"),
        (graph("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), r"has dilations \(2, 2\)"),
        (graph("Relu", (TensorProto.BFLOAT16,), TensorProto.BFLOAT16), None),
        (graph("Relu", (F64,), F64), None),  # imported as FLOAT
        (graph("MaxPool", kernel_shape=[2, 2], dilations=[1, 1]), None),
        (graph("Resize", coordinate_transformation_mode="asymmetric"), None),
        (graph("CastLike", (F32, F16)), None),
        (graph("Where", (BOOL, F16, F16)), None),
        (graph("Equal", (I64, I64), BOOL), None),
        (graph("Shape", (F16,), I64), None),
        (graph("Squeeze"), None),  # of known sizes
    ],
    ids=lambda v: v.graph[0].op_type if isinstance(v, ir.Model) else None,
)
def test_each_rule_refuses_with_its_sentence_and_takes_what_keeps_it(model: ir.Model, words: str | None) -> None:
    if words is None:
        assert objection(model) is None
        VerifyTensorRT()(model)
    else:
        with pytest.raises(ValueError, match=words):
            VerifyTensorRT()(model)


def test_a_squeeze_of_unknown_sizes_must_say_its_axes() -> None:
    model = graph("Squeeze")
    model.graph.inputs[0].shape = ir.Shape(["B", 1, 4, 5])
    assert "squeezes axes of unknown size" in str(objection(model))
    model.graph[0].resize_inputs(2)
    model.graph[0].replace_input_with(1, initializer(model.graph, "axes", ir.tensor(np.array([1]))))
    assert objection(model) is None


def test_a_constant_node_is_a_constant() -> None:
    model = graph("ReduceSum", (F16, I64))
    model.graph[0].replace_input_with(1, ir.node("Constant", [], {"value_ints": [1]}, name="axes").outputs[0])
    model.graph.insert_before(model.graph[0], model.graph[0].inputs[1].producer())
    assert objection(model) is None


def test_a_second_output_of_layer_normalization_is_refused() -> None:
    model = graph("LayerNormalization", (F16, F16))
    model.graph[0].resize_outputs(2)
    assert "has 2 outputs; TensorRT 10.3 gives 1" in str(objection(model))


def test_nine_axes_are_refused() -> None:
    model = graph("Relu")
    model.graph.inputs[0].shape = ir.Shape([1] * 9)
    assert "a has 9 axes; TensorRT has 8" in str(objection(model))
    model = graph("Relu")
    model.graph[0].outputs[0].shape = ir.Shape([1] * 9)
    model.graph.outputs[0] = model.graph.inputs[0]
    assert "y has 9 axes" in str(objection(model))


def test_the_wiring_is_looked_at_too() -> None:
    model = graph("Relu")
    initializer(model.graph, "dead", ir.tensor(np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match="initializer dead is read by nothing"):
        VerifyTensorRT()(model)


def test_weights_of_a_type_that_tensorrt_lacks_are_refused() -> None:
    model = graph("Relu")
    initializer(model.graph, "w", ir.tensor(np.zeros(3, np.uint16)))
    assert "w is UINT16" in str(objection(model))


def broken(change: Callable[[ir.Node], object]) -> str:
    """What is said of a plugin node after a change to it."""
    model = plugin_form()(one_node(Variant(), 64, 64, 16)).model
    assert objection(model) is None
    change(svdq_nodes(model)[0])
    return str(objection(model))


def retype(position: int, dtype: ir.DataType) -> Callable[[ir.Node], object]:
    def change(node: ir.Node) -> None:
        node.inputs[position].const_value = None
        node.inputs[position].type = ir.TensorType(dtype)

    return change


def test_malformed_plugin_nodes_are_refused() -> None:
    float16, float32, int32 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.INT32
    for change, words in (
        (lambda node: node.attributes.pop("rank"), "has 7 inputs; rank 0 needs x, qweight, wscale, inv_smooth, bias"),
        (lambda node: node.resize_inputs(6), "has 6 inputs; rank 16 needs x"),
        (lambda node: setattr(node, "overload", "a4"), "still names the function overload 'a4'"),
        (retype(0, float32), "computes in FLOAT; the plugin has BFLOAT16, FLOAT16"),
        (retype(1, float16), "has qweight in FLOAT16; the plugin needs INT32"),
        (retype(3, int32), "has inv_smooth in INT32; the plugin needs FLOAT16"),
        (lambda node: node.replace_input_with(6, node.inputs[0]), "has a computed bias; the plugin needs a constant"),
    ):
        assert words in broken(change), words


def test_a_function_left_behind_is_refused(solve: Callable) -> None:
    model = block("float16")
    model = PRESETS["w4a16"].apply(model, BLOCK_POLICY, solve(model, "w4a16", "float16"))
    model.graph.opset_imports[""] = 20
    assert "function SvdqLinear a16_s_g64_none_nolr is defined in the model" in str(objection(model))


def test_a_plugin_form_without_plugin_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="0 layers are plugin nodes where 1 were lowered"):
        VerifyTensorRT(at_least=1)(PRESETS["fp16"].apply(block("float16"), BLOCK_POLICY, {}))


def test_the_table_names_operators_and_type_variables_that_onnx_has() -> None:
    for name, row in OPERATORS.items():
        schema = onnx.defs.get_schema(name, OPSETS[-1], "")
        assert not schema.deprecated, name
        variables = {f.type_str for f in (*schema.inputs, *schema.outputs)}
        assert set(row.data) <= variables and row.types <= ALL, name
        assert set(row.attributes) <= set(schema.attributes), name
        assert all(i < len(schema.inputs) for i in row.constant), name


def test_types_that_the_graph_leaves_out_are_found() -> None:
    b = helper
    nodes = [
        b.make_node("Transpose", ["x"], ["t"]),
        b.make_node("Shape", ["t"], ["s"]),
        b.make_node("Cast", ["t"], ["c"], to=F32),
        b.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.zeros(2, np.float16))),
        b.make_node("Constant", [], ["i"], value_ints=[1, 2]),
        b.make_node("ConstantOfShape", ["s"], ["z"]),
        b.make_node("Where", ["m", "t", "k"], ["w"]),
        b.make_node("Greater", ["t", "k"], ["m2"]),
        b.make_node("Unknown", ["t"], ["u"], domain="other"),
        b.make_node("Concat", ["u", "w"], ["y"], axis=0),
        b.make_node("Loop", ["i", "m", "c", "s"], ["l1", "l2"]),  # each of its values has a type of its own
    ]
    values = [b.make_tensor_value_info("x", F16, [2, 2]), b.make_tensor_value_info("m", BOOL, [2, 2])]
    proto = b.make_graph(nodes, "g", values, [b.make_tensor_value_info("y", F16, None)])
    model = ir.from_proto(b.make_model(proto, opset_imports=[b.make_opsetid("", 20), b.make_opsetid("other", 1)]))
    found = {str(v.name): d.name for v, d in dtypes(model).items() if v.producer() is not None}
    assert found == {
        "t": "FLOAT16", "s": "INT64", "c": "FLOAT", "k": "FLOAT16", "i": "INT64", "z": "FLOAT", "w": "FLOAT16",
        "m2": "BOOL", "y": "FLOAT16",
    }  # fmt: skip
