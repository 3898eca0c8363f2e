"""SvdqLinear nodes of both forms: making one, unpacking one, running them on onnx's reference evaluator."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from passes.emit import initializer
from plugins.svdq_linear import layout, reference
from plugins.svdq_linear.spec import DOMAIN, OP_TYPE, Variant, padded_channels

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def one_node(variant: Variant, n: int, k: int, rank: int = 0, dtype: str = "float16") -> ir.Model:
    """A portable model of one node "layer" on random weights; its function body is left out, for nothing runs it."""
    rng, kind = np.random.default_rng(n + k), np.dtype(TYPES[dtype])
    groups = -(-k // variant.group_size)
    weights = {
        "qweight": rng.integers(-7, 8, (n, k)).astype(ml_dtypes.int4),
        "wscale": rng.uniform(0.01, 0.1, (n, groups)).astype(kind),
        "inv_smooth": rng.uniform(0.5, 2, k).astype(kind),
        "down": rng.standard_normal((k, rank)).astype(kind),
        "up": rng.standard_normal((rank, n)).astype(kind),
        "bias": rng.standard_normal(n).astype(kind),
    }
    x = ir.Value(name="x", shape=ir.Shape(["M", k]), type=ir.TensorType(ir.DataType.from_numpy(kind)))
    graph = ir.Graph([x], [], nodes=[], name="one", opset_imports={"": 21, DOMAIN: 1})
    values = [x, *(initializer(graph, f"layer.{name}", ir.tensor(weights[name])) for name in variant.inputs[1:])]
    node = ir.node(OP_TYPE, values, variant.attributes(rank), domain=DOMAIN, overload=variant.overload, name="layer")
    node.metadata_props["svdq.scope"] = "module"
    node.outputs[0].name = "y"
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    return ir.Model(graph, ir_version=10)


def attributes(node: ir.Node) -> dict[str, Any]:
    """The node's attributes as Python values."""
    return {k: a.value for k, a in node.attributes.items()}


def constants(node: ir.Node) -> dict[str, np.ndarray]:
    """The weights that a node of either form reads, by their names in the contract."""
    names = Variant.from_attributes(attributes(node), branch=len(node.inputs) == 7).inputs[1:]
    return {n: np.array(v.const_value.numpy()) for n, v in zip(names, node.inputs[1:], strict=True)}


def unpacked(packed: dict[str, np.ndarray], n: int, k: int, group_size: int) -> dict[str, np.ndarray]:
    """The portable weights that a plugin node's constants hold."""
    channels = padded_channels(k, group_size)
    found = {
        "qweight": layout.unpack_weight(packed["qweight"], n, channels)[:, :k],
        "wscale": layout.unpack_scale(packed["wscale"], n),
        "inv_smooth": packed["inv_smooth"][:k],
        "bias": packed["bias"][:n],
    }
    if "down" in packed:
        found["down"] = layout.unpack_down(packed["down"], channels)[:k]
        found["up"] = layout.unpack_up(packed["up"], n)
    return found


def compute(x: np.ndarray, packed: dict[str, np.ndarray], given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(y, tolerance) of a plugin node by plugins/svdq_linear/reference.py."""
    return _reference(x, unpacked(packed, given["n"], given["k"], given["group_size"]), given)


def _reference(x: np.ndarray, weights: dict[str, np.ndarray], given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    variant = Variant.from_attributes(given, branch="down" in weights)
    order = ("qweight", "wscale", "inv_smooth", "down", "up", "bias")
    return reference.svdq_linear(x, *(weights.get(name) for name in order), variant)


class SvdqLinear(OpRun):
    """The op in either form, for onnx's reference evaluator."""

    op_domain = DOMAIN

    def _run(self, x: np.ndarray, *weights: np.ndarray, **given: Any) -> tuple[np.ndarray]:
        names = Variant.from_attributes(given, branch=len(weights) == 6).inputs[1:]
        found = dict(zip(names, weights, strict=True))
        if "layout_version" in given:
            return (compute(x, found, given)[0],)
        found["qweight"] = found["qweight"].astype(np.int8)
        return (_reference(x, found, given)[0],)


def evaluate(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    """Run a model in either form, every SvdqLinear by plugins/svdq_linear/reference.py."""
    proto = ir.to_proto(model)
    del proto.functions[:]  # the evaluator would take the function body
    return ReferenceEvaluator(proto, new_ops=[SvdqLinear]).run(None, feeds)[0]
