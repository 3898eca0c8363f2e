"""Small graphs in the form in which the exporter gives them, and running them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTH = 128
ONNX_TYPE = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class GraphBuilder:
    """Collects nodes and weights; `model()` gives the ir.Model."""

    def __init__(self, dtype: str = "float32", seed: int = 0) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def node(self, op_type: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"v_{name}"], name=name, **attributes))
        return f"v_{name}"

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = value.astype(self.dtype)
        return name

    def integers(self, name: str, value: list[int]) -> str:
        self.weights[name] = np.array(value, np.int64)
        return name

    def linear(self, name: str, x: str, k: int, n: int, bias: bool = True) -> str:
        self.weight(f"{name}.weight", self.rng.standard_normal((n, k)) / k**0.5)
        transposed = self.node("Transpose", [f"{name}.weight"], perm=[1, 0])
        y = self.node("MatMul", [x, transposed])
        if bias:
            y = self.node("Add", [y, self.weight(f"{name}.bias", self.rng.standard_normal(n))])
        return y

    def model(self, inputs: dict[str, list], outputs: dict[str, list]) -> ir.Model:
        kind = ONNX_TYPE[self.dtype]
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, kind, s) for n, s in outputs.items()],
            [numpy_helper.from_array(v, n) for n, v in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return ir.from_proto(onnx.shape_inference.infer_shapes(model))

    def rename(self, old: str, new: str) -> str:
        """Give the value `old` another name, e.g. that of an output."""
        for node in self.nodes:
            node.output[:] = [new if o == old else o for o in node.output]
        return new


def block(dtype: str = "float32") -> ir.Model:
    """x[B, S, 128], emb[B, 128] → y: AdaLN modulation, q/k/v, a feed-forward with GELU, FLUX's concatenation.

    A little like FLUX's blocks: `norm.linear` modulates; to_q, to_k, to_v read one tensor; `proj_mlp` reads it too;
    `ff.net.0.proj` → GELU → `ff.net.2`; `proj_out` reads concat(attention, gelu(proj_mlp)).
    """
    b = GraphBuilder(dtype)
    modulation = b.linear("norm.linear", "emb", WIDTH, WIDTH)
    axes = b.integers("axes", [1])
    x = b.node("Add", ["x", b.node("Unsqueeze", [modulation, axes])])
    q, k, v = (b.linear(f"attn.to_{n}", x, WIDTH, WIDTH, bias=n != "k") for n in "qkv")
    b.weights["scale"] = np.array(WIDTH**-0.5, dtype)
    scores = b.node("MatMul", [b.node("Mul", [q, "scale"]), b.node("Transpose", [k], perm=[0, 2, 1])])
    scores = b.node("Softmax", [scores], axis=-1)
    attention = b.node("MatMul", [scores, v])
    mlp = b.node("Gelu", [b.linear("proj_mlp", x, WIDTH, 2 * WIDTH)], approximate="tanh")
    both = b.node("Concat", [attention, mlp], axis=2)
    x = b.node("Add", [x, b.linear("proj_out", both, 3 * WIDTH, WIDTH)])
    hidden = b.node("Gelu", [b.linear("ff.net.0.proj", x, WIDTH, 2 * WIDTH)], approximate="tanh")
    y = b.linear("ff.net.2", hidden, 2 * WIDTH, WIDTH)
    b.rename(y, "y")
    return b.model({"x": ["B", "S", WIDTH], "emb": ["B", WIDTH]}, {"y": ["B", "S", WIDTH]})


def run(model: ir.Model, folder: Path, **feeds: np.ndarray) -> np.ndarray:
    """Check the model with onnx.checker and run it on plain onnxruntime."""
    path = folder / "model.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def ops(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator the main graph has."""
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
