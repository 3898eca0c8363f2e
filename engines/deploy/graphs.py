"""A graph with only the weights that it refers to: the artifact's forms share data files, a bundle holds one form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from artifact.errors import UserError
from artifact.files import inside, written_whole
from engines.external import pieces, tensors

ALIGNMENT = 256  # bytes; what a memory map of the file gives to a GPU's copy engine unshifted
BLOCK = 1 << 20  # bytes read at a time: a text encoder's weights need not fit into memory


def copy_graph(model: Path, to: Path) -> list[Path]:
    """Write the graph in `model` to `to` (.onnx) and the pieces of external data that it names to `to`.data.

    Pieces follow one another in the graph's order; one that several tensors name is written once. Returns the files
    written, the .onnx last. Raises UserError where the graph is damaged or the disk is full.
    """
    import onnx

    pieces(model)  # refuses damaged graphs and data outside their directory
    proto = onnx.load(str(model), load_external_data=False)
    external = [t for t in tensors(proto.graph) if t.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        with written_whole(to) as partial:
            partial.write_bytes(model.read_bytes())
        return [to]
    data = to.with_name(f"{to.name}.data")
    written: dict[tuple[str, int, int], int] = {}
    with written_whole(data) as partial, open(partial, "wb") as out:
        for tensor in external:
            where = {e.key: e.value for e in tensor.external_data}
            file, offset = inside(model.parent, where["location"]), int(where.get("offset", 0))
            length = int(where.get("length", file.stat().st_size - offset))
            key = (file.name, offset, length)
            if key not in written:
                out.write(bytes(-out.tell() % ALIGNMENT))
                written[key] = out.tell()
                _copy(file, offset, length, out)
            _point(tensor, data.name, written[key], length)
    with written_whole(to) as partial:
        partial.write_bytes(proto.SerializeToString(deterministic=True))
    return [data, to]


def _copy(file: Path, offset: int, length: int, out: BinaryIO) -> None:
    with open(file, "rb") as source:
        source.seek(offset)
        left = length
        while left:
            block = source.read(min(left, BLOCK))
            if not block:
                raise UserError(f"{file} ends {left} bytes early (half-copied): copy the artifact again or rebuild it.")
            out.write(block)
            left -= len(block)


def _point(tensor: Any, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
