"""A 1 x 1 convolution is a linear on every pixel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.emit import Emitter, initializer
from passes.linear import WEIGHT, only_user
from passes.policy import KEEP, Policy
from passes.stacked import lazy

_TO_LAST, _TO_SECOND = (0, 2, 3, 1), (0, 3, 1, 2)


class Conv1x1ToLinear(ir.passes.InPlacePass):
    """Conv(x[B, K, h, w], W[N, K, 1, 1], b) → Transpose → canonical linear on [B, h, w, K] → Transpose.

    SANA's feed-forwards are such convolutions, and the literature quantises them like linears (arXiv 2411.05007).

    1. Matches convolutions that the policy quantises: kernel 1 x 1, one group, stride 1, no padding, and a weight
       "<name>.weight" that nothing else reads.
    2. The weight keeps its name and becomes [N, K], a view of the same numbers.
    3. A SiLU that is all that follows comes before the second Transpose, where AbsorbActivation finds it.
    4. Where the input was just transposed the other way, what stands before is read instead.
    5. Left alone: other kernels, groups (depthwise), strides and paddings, and what the policy keeps.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if self._matches(node)]
        for conv in found:
            _rewrite(model.graph, conv)
        return ir.passes.PassResult(model, bool(found))

    def _matches(self, node: ir.Node) -> bool:
        weight = node.inputs[1] if node.op_type == "Conv" and not node.domain else None
        if weight is None or not weight.is_initializer() or not (weight.name or "").endswith(WEIGHT):
            return False
        name = str(weight.name).removesuffix(WEIGHT)
        shape = list(weight.shape or ())
        return (
            len(shape) == 4
            and shape[2:] == [1, 1]
            and _plain(node)
            and only_user(weight) is node
            and self.policy.scheme(name) != KEEP
        )


def _plain(conv: ir.Node) -> bool:
    """One group, stride 1, no padding; dilations mean nothing to a kernel of one."""
    attribute = conv.attributes
    auto = attribute["auto_pad"].as_string() if "auto_pad" in attribute else "NOTSET"
    return (
        ("group" not in attribute or attribute["group"].as_int() == 1)
        and ("strides" not in attribute or set(attribute["strides"].as_ints()) == {1})
        and ("pads" not in attribute or set(attribute["pads"].as_ints()) == {0})
        and auto in ("NOTSET", "VALID")
    )


def _rewrite(graph: ir.Graph, conv: ir.Node) -> None:
    x, weight = conv.inputs[0], conv.inputs[1]
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    assert x is not None and weight is not None and weight.name is not None
    silu = _silu(conv.outputs[0])
    emit = Emitter(weight.name.removesuffix(WEIGHT), conv.metadata_props.get("svdq.scope", ""))
    y = emit("MatMul", _channels_last(emit, x), emit("Transpose", _matrix(graph, weight), perm=[1, 0]))
    if bias is not None:
        y = emit("Add", y, bias)
    y.type, y.shape = conv.outputs[0].type, _permuted(conv.outputs[0].shape)
    if silu:
        y = emit("Mul", y, emit("Sigmoid", y))
    y = emit("Transpose", y, perm=_TO_SECOND)
    old = silu[0].outputs[0] if silu else conv.outputs[0]
    graph.insert_before(conv, emit.nodes)
    y.name, y.type, y.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    graph.remove([*silu, conv], safe=True)


def _silu(y: ir.Value) -> list[ir.Node]:
    """The Mul and the Sigmoid of y·sigmoid(y), where nothing else reads y; empty where it is no SiLU."""
    users = {use.node for use in y.uses()}
    sigmoid = next((n for n in users if n.op_type == "Sigmoid"), None)
    if sigmoid is None or len(users) != 2 or y.is_graph_output():
        return []
    mul = only_user(sigmoid.outputs[0])
    return [mul, sigmoid] if mul is not None and mul.op_type == "Mul" and mul in users else []


def _channels_last(emit: Emitter, x: ir.Value) -> ir.Value:
    """x as [B, h, w, K]: what stands before a Transpose that brought the channels forward, else a Transpose of x."""
    node = x.producer()
    if node is not None and node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == _TO_SECOND:
        before = node.inputs[0]
        assert before is not None
        return before
    return emit("Transpose", x, perm=_TO_LAST)


def _matrix(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """The initializer [N, K] that takes the place of [N, K, 1, 1]."""
    tensor, name = weight.const_value, str(weight.name)
    assert tensor is not None
    n, k = tensor.shape.numpy()[:2]
    del graph.initializers[name]
    return initializer(graph, name, lazy(name, tensor.dtype, (n, k), lambda: np.asarray(tensor.numpy()).reshape(n, k)))


def _permuted(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[i] for i in _TO_LAST])
