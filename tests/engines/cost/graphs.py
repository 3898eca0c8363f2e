"""Small ONNX graphs to be costed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT16 = TensorProto.FLOAT16
OPSETS = [helper.make_opsetid(d, v) for d, v in (("", 21), ("svdq", 1), ("com.microsoft", 1), ("strange", 1))]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
    kind: int = FLOAT16,
    more: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A model whose inputs are of one type."""
    graph = helper.make_graph(
        list(nodes), "graph",
        [helper.make_tensor_value_info(n, kind, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind, None) for n in outputs],
        [*(numpy_helper.from_array(v, n) for n, v in (weights or {}).items()), *more],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)


def away(name: str, shape: Sequence[int], dtype: int = FLOAT16) -> onnx.TensorProto:
    """An initializer in an external file that does not exist."""
    tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "nowhere.data"), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> Any:
    """A node named by its operator and first output."""
    return helper.make_node(kind, inputs, outputs, name=f"{kind}_{outputs[0]}", domain=domain, **attributes)


def linear(m: int = 5, k: int = 100, n: int = 48, rank: int = 32, act_bits: int = 4) -> onnx.ModelProto:
    """x[m, k] through one SvdqLinear in the portable form: K is no multiple of the group of 64."""
    groups = -(-k // 64)
    weights = [away("w", (n, k), TensorProto.INT4), away("s", (n, groups)), away("i", (k,))]
    weights += [away("d", (k, rank)), away("u", (rank, n))] if rank else []
    weights.append(away("b", (n,)))
    call = node(
        "SvdqLinear", ["x", *(w.name for w in weights)], ["y"], "svdq", group_size=64, act_bits=act_bits, act_signed=1,
        activation="none",
    )  # fmt: skip
    return model([call], {"x": [m, k]}, ["y"], more=weights)
