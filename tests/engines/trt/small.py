"""A small artifact with everything that engines are built from: both forms of a FLUX-like block, a float32 island in
it, a text encoder and a VAE decoder that share their graphs between presets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from artifact import manifest
from artifact.manifest import Artifact
from passes.presets import PRESETS, plugin_form
from passes.solved import Solved
from passes.write import write_model
from tests.passes.conftest import BLOCK_POLICY
from tests.passes.graphs import WIDTH, block

PRESET = "svdq-int4"
SIDE, WORDS = 64, 16
TOKENS = (SIDE // 4 // 2) ** 2
ISLAND = ("to_float", "square", "to_half")  # nodes that compute in float32 by design
FIELDS = {"n": 128, "k": 128}


def make(root: Path, solve: Callable[[ir.Model, str, str], Solved]) -> Artifact:
    """Write it to `root`."""
    for preset in ("fp16", PRESET):
        model = block("float16")
        solved = solve(model, preset, "float16") if preset != "fp16" else {}
        _save(PRESETS[preset].apply(model, BLOCK_POLICY, solved), root / f"transformer/{preset}.onnx")
        if preset != "fp16":
            model = PRESETS[preset].apply(block("float16"), BLOCK_POLICY, solved)
            _save(plugin_form()(model).model, root / f"transformer/{preset}.trt.onnx")
    _text_encoder(root / "text_encoder/fp16.onnx")
    _decoder(root / "vae_decoder/fp16.onnx")
    forms = {p: f"transformer/{p}.onnx" for p in (PRESET, "fp16")}
    lowered = {PRESET: f"transformer/{PRESET}.trt.onnx", "fp16": "transformer/fp16.onnx"}
    components = {
        "text_encoder": _shared("text_encoder", "text_encoder", "CLIPTextModel", {"max_position_embeddings": WORDS}),
        "transformer": {
            "role": "denoiser", "module": "transformer", "class": "FluxTransformer2DModel",
            "config": {"in_channels": 64}, "models": forms, "tensorrt": lowered,
        },
        "vae_decoder": _shared("vae_decoder", "vae", "AutoencoderKL",
                               {"block_out_channels": [8, 8, 8], "latent_channels": 16}),
    }  # fmt: skip
    content = {
        "name": root.name, "pipeline": "FluxPipeline", "source": {"model": "small", "sha256": "5" * 64},
        "target": "cpu", "dtype": "float16", "reserve_rank": 0, "versions": {}, "pipeline_config": {},
        "generation": {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "max_sequence_length": WORDS},
        "presets": [PRESET, "fp16"], "components": components, "folders": {}, "skipped": [],
    }  # fmt: skip
    names = [str(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_file()]
    return manifest.write(root, content | {"files": manifest.record(root, names)})


def _shared(role: str, module: str, cls: str, config: dict[str, object]) -> dict[str, object]:
    path = f"{role}/fp16.onnx"
    forms = {PRESET: path, "fp16": path}
    return {"role": role, "module": module, "class": cls, "config": config, "models": forms, "tensorrt": forms}


def _save(model: ir.Model, path: Path) -> None:
    """With the axes named as exports name them and the island at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model(model, path)
    proto = onnx.load(str(path), load_external_data=False)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = {"B": "batch", "S": "tokens"}.get(dim.dim_param, dim.dim_param)
    last = proto.graph.output[0].name
    proto.graph.output[0].name = "y"
    for node in proto.graph.node:
        node.output[:] = ["narrow" if name == last else name for name in node.output]
    shape = ["batch", "tokens", WIDTH]
    proto.graph.value_info.append(helper.make_tensor_value_info("narrow", TensorProto.FLOAT16, shape))
    proto.graph.value_info.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, shape))
    proto.graph.node.extend(
        [
            helper.make_node("Cast", ["narrow"], ["wide"], "to_float", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "wide"], ["squared"], "square"),
            helper.make_node("Cast", ["squared"], ["y"], "to_half", to=TensorProto.FLOAT16),
        ]
    )
    onnx.save(proto, str(path))


def _text_encoder(path: Path) -> None:
    table = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float16), "table")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT16, ["batch", "sequence", WIDTH])
    _write(path, [helper.make_node("Gather", ["table", "input_ids"], ["hidden"], "embed")], [ids], [hidden], [table])


def _decoder(path: Path) -> None:
    kernel = numpy_helper.from_array(np.full((3, 16, 1, 1), 0.1, np.float16), "kernel")
    latent = helper.make_tensor_value_info("latent_sample", TensorProto.FLOAT16, ["batch", 16, "height", "width"])
    sample = helper.make_tensor_value_info("sample", TensorProto.FLOAT16, ["batch", 3, "height", "width"])
    node = helper.make_node("Conv", ["latent_sample", "kernel"], ["sample"], "conv_out")
    _write(path, [node], [latent], [sample], [kernel])


def _write(path: Path, nodes: list, inputs: list, outputs: list, constants: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(nodes, path.parent.name, inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
