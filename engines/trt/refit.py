"""New numbers for the weights of a built engine, in place of a build: a LoRA that its graph had room for.

TensorRT's own way from the graph: OnnxParserRefitter finds every weight by its initializer's name and refuses where one
is missing ("Refitting an Engine" in TensorRT's documentation; ModelRefitter.cpp of onnx-tensorrt).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.trt import api, versions
from engines.trt.job import Job
from plugins.library import load_into_tensorrt

_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")


def structure_sha256(artifact: Artifact, model: Path) -> str:
    """Hash of a graph of the artifact without the numbers of its float weights: all that a refit cannot change.

    Two graphs with the same one have the same nodes, shapes and packed 4-bit codes.
    """
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    floats = {onnx.TensorProto.DataType.Value(name) for name in _FLOATS}
    files = set()
    for tensor in proto.graph.initializer:
        if tensor.data_type in floats:
            for name in ("raw_data", "float_data", "int32_data", "external_data", "data_location"):
                tensor.ClearField(name)
        else:
            files |= {e.value for e in tensor.external_data if e.key == "location"}
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    folder = model.parent.relative_to(artifact.root.resolve()).as_posix()
    for name in sorted(files):
        digest.update(artifact.manifest["files"][f"{folder}/{name}"]["sha256"].encode())
    return digest.hexdigest()


def refit(job: Job, engine: Path, output: Path) -> None:
    """Write the engine at `engine` with the weights of `job.model` to `output`.

    Raises UserError where TensorRT's Python package is not here or does not take the weights.
    """
    trt = versions.python_module()
    if trt is None:
        raise UserError("The Python package tensorrt is not here, which a refit needs.")
    heard: list[str] = []
    logger = api.make_logger(trt, heard)
    if job.plugin:
        load_into_tensorrt(trt, job.plugin)
    loaded = api.load(trt, logger, engine, job)
    refitter = trt.Refitter(loaded, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(job.model)):  # a path, so that the external data beside it is found
        raise UserError(f"TensorRT {job.version} does not take the weights of {job.model}{_why(parser, heard)}.")
    if not refitter.refit_cuda_engine():
        raise UserError(f"TensorRT {job.version} cannot refit {engine.name}{_why(parser, heard)}.")
    output.write_bytes(memoryview(loaded.serialize()))


def _why(parser: Any, heard: list[str]) -> str:
    if parser.num_errors:
        return f" ({api.one_line(parser.get_error(0).desc())})"
    return f" ({heard[-1]})" if heard else ""
