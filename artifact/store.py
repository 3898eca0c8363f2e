"""A content-addressed store: results named by the hash of all that made them.

Entries are safetensors files, written whole; a build that was killed finds what it had finished, and two builds may
share one store. Every entry carries a digest of its bytes, so a flipped bit reads as "not there".
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from safetensors.numpy import load, save

from artifact.files import written_whole

DIGEST_BYTES = 32
_NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "U16": np.uint16, "BOOL": np.bool_,
}  # fmt: skip
_DTYPES = "dtypes"  # metadata key: arrays stored as another type's bits


class Store:
    """Entries below `root`, each at `<first two digits>/<key>`; safe for several processes at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, key: str) -> Path:
        """Where the entry of `key` lies, there or not."""
        return self.root / key[:2] / key

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, with its digest behind it."""
        with written_whole(self.path(key)) as partial:
            partial.write_bytes(data + hashlib.sha256(data).digest())

    def get_bytes(self, key: str) -> bytes | None:
        """The bytes stored under `key`, or None where there are none or they are damaged."""
        try:
            stored = self.path(key).read_bytes()
        except FileNotFoundError:
            return None
        data, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            self.path(key).unlink(missing_ok=True)
            return None
        return data

    def put_arrays(self, key: str, arrays: dict[str, np.ndarray], meta: dict[str, str]) -> None:
        """Store named arrays (any dtype that safetensors knows, bfloat16 included) and string metadata."""
        plain = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        # safetensors' numpy reader does not know bfloat16: keep its bits as uint16 and its name in the metadata.
        odd = {k: v.dtype.name for k, v in plain.items() if v.dtype.name == "bfloat16"}
        plain = {k: v.view(np.uint16) if k in odd else v for k, v in plain.items()}
        self.put_bytes(key, save(plain, metadata={**meta, _DTYPES: json.dumps(odd)}))

    def describe(self, key: str) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...]]], dict[str, str]] | None:
        """{array: (dtype, shape)} and metadata of what `put_arrays` stored, or None.

        Reads the entry's head alone: whether the arrays are whole shows when they are read.
        """
        try:
            with open(self.path(key), "rb") as f:
                header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        except (FileNotFoundError, ValueError, OverflowError, MemoryError):
            return None
        meta = header.pop("__metadata__")
        odd = json.loads(meta.pop(_DTYPES))
        kinds = {k: np.dtype(odd.get(k) or _NUMPY[v["dtype"]]) for k, v in header.items()}
        return {k: (kinds[k], tuple(v["shape"])) for k, v in header.items()}, meta

    def get_arrays(self, key: str) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
        """What `put_arrays` stored, or None."""
        data = self.get_bytes(key)
        if data is None:
            return None
        header = int.from_bytes(data[:8], "little")
        meta = json.loads(data[8 : 8 + header])["__metadata__"]
        odd = json.loads(meta.pop(_DTYPES))
        arrays = load(data)
        return {k: v.view(np.dtype(odd[k])) if k in odd else v for k, v in arrays.items()}, meta


def key_of(*parts: str | bytes | np.ndarray) -> str:
    """SHA-256 over the parts, each with its length or its dtype and shape, so that no two lists collide."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(f"array {part.dtype} {part.shape} ".encode())
            h.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            data = part.encode() if isinstance(part, str) else part
            h.update(f"bytes {len(data)} ".encode())
            h.update(data)
    return h.hexdigest()
