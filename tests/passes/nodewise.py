"""Every fused node of a model against the numpy oracle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from plugins.svdq_linear import reference
from plugins.svdq_linear.spec import DOMAIN, Variant


def svdq_nodes(model: ir.Model) -> list[ir.Node]:
    """The model's SvdqLinear nodes, in order."""
    return [node for node in model.graph if node.domain == DOMAIN]


def alone(model: ir.Model, node: ir.Node) -> bytes:
    """A model of nothing but this node, with its weights and its function."""
    x, dtype = node.inputs[0], node.inputs[-1].const_value.dtype
    k = int(node.inputs[1].shape[1])
    values = [ir.Value(name="x", shape=ir.Shape(["M", k]), type=ir.TensorType(dtype))]
    for value in node.inputs[1:]:
        tensor = ir.tensor(np.array(value.const_value.numpy()), dtype=value.const_value.dtype)  # off the file
        copy = ir.Value(name=value.name, const_value=tensor)
        copy.type, copy.shape = ir.TensorType(tensor.dtype), tensor.shape
        values.append(copy)
    assert x is not None
    call = ir.node(node.op_type, values, node.attributes, domain=DOMAIN, overload=node.overload, name="call")
    call.outputs[0].name, call.outputs[0].type = "y", ir.TensorType(dtype)
    graph = ir.Graph(
        values[:1], call.outputs, nodes=[call], initializers=values[1:], name="alone", opset_imports={"": 21, DOMAIN: 1}
    )
    function = model.functions[DOMAIN, node.op_type, node.overload]
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=[function])).SerializeToString()


def variant_of(node: ir.Node) -> Variant:
    """The variant that a node's attributes spell."""
    attributes = {k: a.value for k, a in node.attributes.items()}
    return Variant.from_attributes(attributes, branch=len(node.inputs) == 7)


def oracle(node: ir.Node, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(y, tolerance) of plugins/svdq_linear/reference.py for the node's weights."""
    variant = variant_of(node)
    weights = {n: v.const_value.numpy() for n, v in zip(variant.inputs[1:], node.inputs[1:], strict=True)}
    weights["qweight"] = weights["qweight"].astype(np.int8)
    return reference.svdq_linear(
        x,
        weights["qweight"],
        weights["wscale"],
        weights["inv_smooth"],
        weights.get("down"),
        weights.get("up"),
        weights["bias"],
        variant,
    )


def disagreements(model: ir.Model, rows: int = 33, seed: int = 0) -> Iterator[tuple[str, int, float]]:
    """(node name, elements out of the bound, worst error over bound) of every fused node, on random inputs.

    The inputs have outliers, a row of zeros, rows with a NaN first in a group and inside one, a row with an infinity
    and one of numbers so small that float16 scales are subnormal.
    """
    rng = np.random.default_rng(seed)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for node in svdq_nodes(model):
        k = int(node.inputs[1].shape[1])
        x = rng.standard_normal((rows, k)) * np.exp(rng.standard_normal(k))
        x[1] = 0
        group = variant_of(node).group_size
        x[2, k // 2 // group * group] = np.nan
        x[3, k // 2 // group * group + 9] = np.nan
        x[4, k - 3] = np.inf
        x[5] *= 1e-7
        x = x.astype(node.inputs[-1].const_value.dtype.numpy())
        session = ort.InferenceSession(alone(model, node), options, providers=["CPUExecutionProvider"])
        y = session.run(None, {"x": x})[0]
        expected, tolerance = oracle(node, x)
        good = reference.agrees(y, expected, tolerance)
        with np.errstate(all="ignore"):
            worst = np.nanmax(np.abs(y.astype(np.float64) - expected.astype(np.float64)) / tolerance)
        yield str(node.name), int((~good).sum()), float(worst)
