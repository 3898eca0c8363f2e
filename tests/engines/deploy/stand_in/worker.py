"""Runs ONNX files for tensorrt.py by onnxruntime; plugin nodes first become the op's body in standard operators."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

_models: dict[str, Any] = {}
_shapes: dict[Any, Any] = {}


class Model:
    """One graph."""

    def __init__(self, path: str) -> None:
        # Damage that a test asks for: STAND_IN_NAN names a component whose outputs hold a NaN.
        self.broken = bool(named := os.environ.get("STAND_IN_NAN")) and f"/{named}/" in path
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        graph = onnx.load(path, load_external_data=False).graph
        self.tensors = {}
        for mode, values in (("INPUT", graph.input), ("OUTPUT", graph.output)):
            for v in values:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
                self.tensors[v.name] = (mode, dtype.name)
        self.dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
        self.outputs = [v.name for v in graph.output]
        plugins = any(n.op_type == "SvdqLinear" for n in graph.node)
        model = without_plugins(path) if plugins else path
        self.call = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = dict(zip(self.outputs, self.call(None, feeds), strict=True))
        if self.broken:
            for value in found.values():
                value.reshape(-1)[0] = np.nan
        return found


def without_plugins(path: str) -> bytes:
    """The model in `path` with every plugin node's constants unpacked and its body written out."""
    import onnx_ir as ir

    from passes.body import svdq_linear
    from passes.emit import Emitter
    from plugins.svdq_linear.spec import Variant
    from tests.passes.plugin_nodes import attributes, constants, unpacked

    model = ir.load(path)
    ir.external_data.load_to_model(model)
    for node in [n for n in model.graph if n.op_type == "SvdqLinear"]:
        given = attributes(node)
        weights = unpacked(constants(node), given["n"], given["k"], given["group_size"])
        weights["qweight"] = weights["qweight"].astype(ml_dtypes.int4)
        emitter = Emitter(f"{node.name}/body")
        values = {"x": node.inputs[0], **{k: emitter.const(v, v.dtype) for k, v in weights.items()}}
        variant = Variant.from_attributes(given, branch="down" in weights)
        y = svdq_linear(emitter, values, variant, given["k"])
        model.graph.insert_before(node, emitter.nodes)
        ir.convenience.replace_all_uses_with(node.outputs[0], y)
        model.graph.remove(node, safe=True)
    model.opset_imports[""] = 21
    return ir.to_proto(model).SerializeToString()


def answer(what: str, path: str, *rest: Any) -> Any:
    if path not in _models:
        _models[path] = Model(path)
    model = _models[path]
    if what == "open":
        return model.tensors
    if what == "fits":
        name, shape = rest
        fixed = model.dims[name]
        return len(fixed) == len(shape) and all(d in (0, s) for d, s in zip(fixed, shape, strict=True))
    if what == "shape":
        name, shapes = rest
        key = (path, tuple(sorted(shapes.items())))
        if key not in _shapes:  # whatever the numbers: ones are ids and timesteps that every graph takes
            feeds = {n: np.ones(s, model.tensors[n][1]) for n, s in shapes.items()}
            _shapes[key] = {n: v.shape for n, v in model.run(feeds).items()}
        return _shapes[key][name]
    return model.run(*rest)


while True:
    try:
        message = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    pickle.dump(answer(*message), sys.stdout.buffer)
    sys.stdout.buffer.flush()
