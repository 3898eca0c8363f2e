"""The external data of an .onnx file: which pieces of which files it names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import inside


@dataclass(frozen=True)
class Piece:
    """`length` bytes at `offset` of `file`; a length of None means up to the file's end."""

    file: Path
    offset: int
    length: int | None

    @property
    def nbytes(self) -> int:
        """Bytes that the piece takes on disk."""
        return self.file.stat().st_size - self.offset if self.length is None else self.length


def pieces(model: Path) -> set[Piece]:
    """The distinct pieces that the graph in `model` refers to.

    Raises UserError where a piece lies outside the model's own directory, is behind a link out of it, or is missing,
    and where the file is no ONNX graph.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except DecodeError:
        raise UserError(f"{model} is no ONNX graph (damaged or half-copied): copy it again or rebuild it.") from None
    found = set()
    for tensor in tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {e.key: e.value for e in tensor.external_data}
            file = inside(model.parent, where["location"])
            if not file.is_file():
                raise UserError(f"{file}, which {model.name} keeps weights in, is missing: copy it again or rebuild.")
            length = where.get("length")
            found.add(Piece(file, int(where.get("offset", 0)), None if length is None else int(length)))
    return found


def tensors(graph: Any) -> Iterator[Any]:
    """Initializers and constants of a graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from tensors(subgraph)
