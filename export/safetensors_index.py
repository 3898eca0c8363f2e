"""Where each tensor of a safetensors file lies, read and checked without loading any.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes back to back
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from artifact.errors import UserError

MAX_HEADER = 100_000_000  # the format's own limit
NUMPY_TYPE: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
PACKED = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")  # the format's types that only quantised models have


@dataclass(frozen=True)
class Weight:
    """One tensor in a file: `offset` counts from the file's first byte, `dtype` is safetensors' name for it."""

    name: str
    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The tensor, memory-mapped read-only, in its own dtype."""
        kind = np.dtype(NUMPY_TYPE[self.dtype])
        if self.nbytes == 0:
            return np.empty(self.shape, kind)
        return np.memmap(self.file, kind, mode="r", offset=self.offset, shape=self.shape)


@dataclass(frozen=True)
class WeightIndex(Mapping[str, Weight]):
    """The tensors of one module by name, over all of its shards; `files` in the order of their names."""

    tensors: dict[str, Weight]
    files: tuple[Path, ...]

    def __getitem__(self, name: str) -> Weight:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def index_files(files: list[Path]) -> WeightIndex:
    """The tensors of all `files`. Raises UserError where a file is damaged or two files hold one name."""
    tensors: dict[str, Weight] = {}
    for file in files:
        for weight in read_header(file):
            if weight.name in tensors:
                raise UserError(
                    f"{weight.name!r} is in both {tensors[weight.name].file.name} and {file}: download the model again."
                )
            tensors[weight.name] = weight
    return WeightIndex(tensors, tuple(files))


def check_placement(index: Path, placement: Mapping[str, Any], weights: WeightIndex) -> None:
    """Compare a sharded model's index with its shards; `placement` is the index's {tensor: name of the shard}.

    Raises UserError where a tensor is in another shard than the index says, in none, or in a shard alone.
    """
    for name, shard in placement.items():
        if name not in weights:
            raise UserError(f"{index} places {name!r} in {shard!r}, which does not hold it: download the model again.")
        if weights[name].file.name != shard:
            raise UserError(
                f"{index} places {name!r} in {shard!r}, but it is in {weights[name].file.name!r}: download the model "
                "again."
            )
    for name, weight in weights.items():
        if name not in placement:
            raise UserError(
                f"{weight.file} holds {name!r}, which {index.name} does not name: download the model again."
            )


def read_header(file: Path) -> list[Weight]:
    """The tensors of one file in the order of their bytes.

    Raises UserError unless the header is sound and the tensors fill the file without gap or overlap, each with as
    many bytes as its dtype and shape need.
    """
    size = file.stat().st_size
    with open(file, "rb") as f:
        prefix = f.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(file, f"it has {size} bytes, too few for its header")
        try:
            header = json.loads(f.read(length))
            header.pop("__metadata__", None)
            found = [_weight(file, 8 + length, name, entry) for name, entry in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(file, "its header is not one of safetensors") from None
    found.sort(key=lambda w: (w.offset, w.nbytes))
    end = 8 + length
    for weight in found:
        if weight.offset != end:
            raise _damaged(file, f"{weight.name!r} starts at byte {weight.offset}, the one before it ends at {end}")
        if weight.nbytes != math.prod(weight.shape) * np.dtype(NUMPY_TYPE[weight.dtype]).itemsize:
            raise _damaged(file, f"{weight.name!r} has {weight.nbytes} bytes for {weight.dtype} {list(weight.shape)}")
        end += weight.nbytes
    if end != size:
        raise _damaged(file, f"its tensors end at byte {end}, the file at {size}")
    return found


def _weight(file: Path, base: int, name: str, entry: dict[str, Any]) -> Weight:
    """One header entry; any malformed field raises one of the errors that `read_header` catches."""
    begin, end = (int(v) for v in entry["data_offsets"])
    shape = tuple(int(v) for v in entry["shape"])
    if entry["dtype"] in PACKED:
        raise UserError(
            f"{file} was quantised already ({name!r} is {entry['dtype']}): give the 16-bit model that it was made from."
        )
    if min((begin, end - begin, *shape)) < 0 or entry["dtype"] not in NUMPY_TYPE:
        raise ValueError(name)
    return Weight(name, file, base + begin, end - begin, entry["dtype"], shape)


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file} is truncated or damaged ({why}): download or copy it again.")
