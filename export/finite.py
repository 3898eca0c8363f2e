"""A safetensors file read once: its digest, and the first weight that is no finite number.

Every file of a model is read to be hashed, long before anything is computed from it: looking at the numbers on the way
costs little beside the hash, and a model that diverged is refused before it is exported.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from export.safetensors_index import NUMPY_TYPE, Weight, read_header

CHUNK = 1 << 18  # bytes; what is hashed and looked at stays in the cache

# Without its sign bit a number is not finite where it reaches this: all bits of its exponent are set.
_LIMIT: dict[str, tuple[Any, int]] = {
    "F64": (np.uint64, 0x7FF0 << 49), "F32": (np.uint32, 0x7F80 << 17),
    "F16": (np.uint16, 0x7C00 << 1), "BF16": (np.uint16, 0x7F80 << 1),
}  # fmt: skip


def digest_and_fault(file: Path) -> tuple[str, str | None]:
    """Hex SHA-256 of the file's bytes, and a clause on the first number in it that is NaN or Inf, or None.

    Raises UserError where the file is no sound safetensors file.
    """
    found = hashlib.sha256()
    fault = None
    weights = read_header(file)
    with open(file, "rb") as f:
        found.update(f.read(weights[0].offset if weights else -1))
        for weight in weights:
            for start in range(0, weight.nbytes, CHUNK):
                block = f.read(min(CHUNK, weight.nbytes - start))
                found.update(block)
                if fault is None:
                    fault = _fault(weight, start, block)
    return found.hexdigest(), fault


def _fault(weight: Weight, start: int, block: bytes) -> str | None:
    """A clause on the first number of the block, which begins at byte `start` of the tensor, that is not finite."""
    if weight.dtype not in _LIMIT:
        return None
    bits, limit = _LIMIT[weight.dtype]
    if int((np.frombuffer(block, bits) << 1).max(initial=0)) < limit:
        return None
    values = np.frombuffer(block, NUMPY_TYPE[weight.dtype])
    at = int(np.flatnonzero(~np.isfinite(values.astype(np.float64)))[0])
    place = np.unravel_index(start // values.itemsize + at, weight.shape)
    return f"{weight.name!r} holds {float(values[at])} at {[int(i) for i in place]}"
