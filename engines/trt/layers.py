"""What TensorRT says of the layers of an engine that it built, and whether that is what we asked for.

The JSON is that of IEngineInspector and of trtexec --exportLayerInfo, with detailed profiling verbosity. Versions
differ in how a tensor's type is written (TensorRT's migration guide for IEngineInspector, and TREx's dictionary of
formats, tools/experimental/trt-engine-explorer/trex/activations.py):

    8.6          "Format/Datatype": "Row major linear FP16 format"
    10           the same, or "Half" and "Float" in layers that Myelin made, whose "Metadata" name the ONNX nodes
    11           "Format" and "DataType" apart; "I/O Tensors" instead of "Bindings"

Two things are errors, because both give an engine that works and is slow, or larger than memory:

1.  A 4-bit node of the graph that is no plugin layer.
2.  A layer that gives float32 where none of the ONNX nodes in it, nor any of its tensors, is float32 in the graph.
    The graph is typed throughout, so what is float32 there (norms in float32, rotary tables, a time step) is so by
    design, and nothing else is. A layer that names no ONNX node, and no tensor of the graph, is an error where it is
    a matrix product or a convolution, and is counted otherwise: TensorRT makes small helpers of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from artifact.errors import UserError
from engines.trt.graph import Graph

_MOVES = ("reformat", "noop", "constant", "shapehostdevicecopy", "shapehosttodevice", "devicetoshapehost", "signal",
          "wait", "trainstation", "memcpy", "move")  # fmt: skip
_PRODUCT = re.compile(r"gemm|conv|matrixmultiply|matmul|fullyconnected|xmma|cutlass", re.I)
_PROFILE = re.compile(r"\s*\[profile \d+\]$")


@dataclass(frozen=True)
class Layer:
    """`inputs` and `outputs`: name and type ("float16", "float32", "other") of its tensors. `nodes`: the ONNX nodes
    that TensorRT says are in it."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    nodes: tuple[str, ...]

    @property
    def is_plugin(self) -> bool:
        return self.kind.lower().startswith("plugin")

    @property
    def is_product(self) -> bool:
        return bool(_PRODUCT.search(f"{self.kind} {self.tactic}"))

    @property
    def gives_float32(self) -> bool:
        return any(kind == "float32" for _, kind in self.outputs)


def parse(text: str) -> list[Layer]:
    """The layers of TensorRT's JSON, those of the first profile. Raises UserError where it is not that."""
    try:
        content = json.loads(text)
        listed = content["Layers"] if isinstance(content, dict) else content
        if any(not isinstance(layer, dict) for layer in listed):
            raise UserError(
                "TensorRT's layer information has names only, so nothing can be checked: "
                "build with --profilingVerbosity=detailed."
            )
        return [_layer(layer) for layer in listed if not _PROFILE.search(layer["Name"])]
    except (ValueError, KeyError, TypeError, AttributeError):
        start = " ".join(text[:60].split())
        raise UserError(
            f"TensorRT's layer information cannot be read (it begins {start!r}): build the engine again."
        ) from None


def judge(layers: list[Layer], graph: Graph, engine: str) -> list[str]:
    """What is worth knowing of the layers; raises UserError for a layer that is not as the graph has it.

    `engine` is what the message calls it.
    """
    _refuse_unfused(layers, graph, engine)
    wide, unknown = [], 0
    for layer in layers:
        if layer.kind.lower().startswith(_MOVES) or not layer.gives_float32:
            continue
        of = nodes_of(layer, graph)
        if of:
            wide += [] if graph.float32 & set(of) else [layer]
        elif {_plain(name) for name, _ in (*layer.inputs, *layer.outputs)} & graph.float32_values:
            continue
        elif layer.is_product or layer.is_plugin:
            wide.append(layer)
        else:
            unknown += 1
    if wide:
        raise UserError(
            f"{len(wide)} layers of {engine} compute in float32 where the graph has 16 bits, the first is "
            f"{wide[0].name!r} ({wide[0].kind}): the engine was not kept; build it with strong typing, or for "
            "TensorRT 8.6 with --fp16."
        )
    plugins = sum(layer.is_plugin for layer in layers)
    float32 = sum(layer.gives_float32 for layer in layers)
    said = [f"{engine}: {len(layers)} layers, {plugins} in the plugin, {float32} in float32 as the graph has them"]
    if unknown:
        said.append(f"{engine}: {unknown} small float32 layers are TensorRT's own and belong to no node of the graph")
    return said


def nodes_of(layer: Layer, graph: Graph) -> tuple[str, ...]:
    """The ONNX nodes that a layer computes: from its metadata, else from its name as TensorRT 8 makes it.

    "a + b" are nodes fused one by one; "{ForeignNode[a...b]}" is a stretch of the graph that Myelin compiled.
    """
    if layer.nodes:
        return tuple(n for n in layer.nodes if n in graph.order) or layer.nodes
    foreign = re.search(r"ForeignNode\[(.+?)\.\.\.(.+?)\]", layer.name)
    if foreign:
        return graph.between(_node(foreign[1]), _node(foreign[2]))
    parts = (_node(part) for part in re.split(r" \+ |\|\|", layer.name))
    return tuple(part for part in parts if part in graph.order)


def _refuse_unfused(layers: list[Layer], graph: Graph, engine: str) -> None:
    found = {name for layer in layers if layer.is_plugin for name in (layer.name, *layer.nodes, *_parts(layer.name))}
    lost = [name for name in graph.plugins if name not in found]
    if not lost:
        return
    instead = next((layer for layer in layers if lost[0] in (layer.name, *layer.nodes)), None)
    where = f"became {instead.kind} {instead.name!r}" if instead else "is nowhere among the engine's layers"
    raise UserError(
        f"{len(lost)} of {len(graph.plugins)} 4-bit layers of {engine} are not in the plugin, the first is "
        f"{lost[0]!r}, which {where}: no engine was kept; check that the plugin library is the one for this TensorRT."
    )


def _layer(raw: dict[str, Any]) -> Layer:
    return Layer(
        raw["Name"],
        str(raw.get("LayerType", "")),
        str(raw.get("TacticName", "")),
        tuple(_tensors(raw.get("Inputs"))),
        tuple(_tensors(raw.get("Outputs"))),
        tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(raw.get("Metadata", "")))),
    )


def _tensors(listed: Any) -> Iterator[tuple[str, str]]:
    for tensor in listed or ():
        kind = tensor.get("DataType") or tensor.get("Datatype")
        yield (
            str(tensor.get("Name", "")),
            _type(str(kind or tensor.get("Format/Datatype") or tensor.get("Format") or "")),
        )


def _type(text: str) -> str:
    """ "float32" for "Float" and for "Row major linear FP32", likewise "float16"; BF16 and integers are "other"."""
    if re.search(r"\bFP32\b|^Float$|\bfloat32\b", text, re.I):
        return "float32"
    return "float16" if re.search(r"\bFP16\b|^Half$|\bfloat16\b", text, re.I) else "other"


def _node(name: str) -> str:
    """A node's name out of a layer's: without the braces and the wrapper that TensorRT 8 puts around."""
    name = name.strip().strip("{}")
    wrapped = re.fullmatch(r"\w+\((.+)\)", name)
    return wrapped[1] if wrapped else name


def _parts(name: str) -> tuple[str, ...]:
    return tuple(_node(part) for part in name.split(" + "))


def _plain(name: str) -> str:
    """A tensor's name without what TensorRT adds where it changes its layout."""
    return re.sub(r"^Reformatted (?:Input|Output) Tensor \d+ to ", "", name)
