"""What a preset takes on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifact.manifest import Artifact


def preset_bytes(artifact: Artifact, preset: str) -> dict[str, int]:
    """Bytes of every component for this preset: its .onnx file and the external data that the file refers to.

    Data that several presets share in one file count for each of them, data of another preset beside it do not.
    """
    return {name: model_bytes(artifact.model(name, preset)) for name in artifact.manifest["components"]}


def model_bytes(model: Path) -> int:
    """Bytes of the .onnx file and of the distinct pieces of external data that it names."""
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    pieces: set[tuple[str, int, int]] = set()
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {e.key: e.value for e in tensor.external_data}
            whole = (model.parent / where["location"]).stat().st_size
            offset = int(where.get("offset", 0))
            pieces.add((where["location"], offset, int(where.get("length", whole - offset))))
    return model.stat().st_size + sum(length for _, _, length in pieces)


def _tensors(graph: Any) -> Iterator[Any]:
    """Initializers and constants of a graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)
