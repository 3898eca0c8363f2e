"""safetensors files written as they are drawn: the header first, then one tensor after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from artifact.files import write_json, written_whole

MAX_BYTES = 5_000_000_000  # of a shard, as most published models have them


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor; `dtype` is safetensors' name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


Blocks = Callable[[Tensor], Iterable[memoryview]]


def write_shards(
    folder: Path, stem: str, tensors: list[Tensor], blocks: Blocks, max_bytes: int = MAX_BYTES
) -> Iterator[Path]:
    """Write `tensors` as diffusers and transformers name them; yields each file when it is there.

    One file `<stem>.safetensors` where they fit into `max_bytes`, else shards and `<stem>.safetensors.index.json`.
    `blocks` gives a tensor's bytes in order. Raises UserError where the disk has no room for the next file.
    """
    shards = split(tensors, max_bytes)
    count = len(shards)
    files = [
        f"{stem}-{i + 1:05}-of-{count:05}.safetensors" if count > 1 else f"{stem}.safetensors" for i in range(count)
    ]
    for file, shard in zip(files, shards, strict=True):
        write_file(folder / file, shard, blocks)
        yield folder / file
    if count > 1:
        write_json(
            folder / f"{stem}.safetensors.index.json",
            {
                "metadata": {"total_size": sum(t.nbytes for t in tensors)},
                "weight_map": {t.name: file for file, shard in zip(files, shards, strict=True) for t in shard},
            },
        )


def split(tensors: list[Tensor], max_bytes: int) -> list[list[Tensor]]:
    """Tensors in their order, as many to a shard as fit; one that is larger has a shard of its own."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_file(path: Path, tensors: list[Tensor], blocks: Blocks) -> None:
    """One safetensors file, whole or not at all; memory holds one block."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes],
        }  # fmt: skip
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    with written_whole(path, 8 + len(text) + end) as partial, open(partial, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = sum(f.write(block) for block in blocks(tensor))
            assert written == tensor.nbytes, f"{tensor.name}: {written} of {tensor.nbytes} bytes"
