"""Runs ONNX files for tensorrt.py: onnxruntime, or onnx's reference evaluator where a graph has plugin nodes."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

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
        if any(n.op_type == "SvdqLinear" for n in graph.node):
            from onnx.reference import ReferenceEvaluator

            from tests.passes.plugin_nodes import SvdqLinear

            self.call = ReferenceEvaluator(onnx.load(path), new_ops=[SvdqLinear]).run
        else:
            self.call = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = dict(zip(self.outputs, self.call(None, feeds), strict=True))
        if self.broken:
            for value in found.values():
                value.reshape(-1)[0] = np.nan
        return found


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
