"""A content-addressed store: results named by the hash of all that made them.

Entries are safetensors files, written whole; a build that was killed finds what it had finished, and two builds may
share one store. Every entry carries a digest of its bytes, so a flipped bit reads as "not there". A store may have a
limit: see artifact/eviction.py for what goes and what stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from safetensors.numpy import load, save

from artifact.errors import UserError
from artifact.eviction import evict, locked, protected
from artifact.files import written_whole

DIGEST_BYTES = 32
_NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "U16": np.uint16, "BOOL": np.bool_,
}  # fmt: skip
_DTYPES = "dtypes"  # metadata key: arrays stored as another type's bits


class Store:
    """Entries below `root`, each at `<first two digits>/<key>`; safe for several processes at once.

    `limit_bytes`: when the entries together have more, those used least recently are deleted, but none that was used
    since this object was made, or that a build in any process needs (see `in_use`). None: nothing is ever deleted.
    """

    def __init__(self, root: Path | str, limit_bytes: int | None = None) -> None:
        self.root, self.limit_bytes = Path(root), limit_bytes
        self._began = time.time_ns()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For the length of a build: what it has used since this object was made stays, whoever else evicts."""
        with protected(self.root, self._began):
            yield
            self._evict()

    def path(self, key: str) -> Path:
        """Where the entry of `key` lies, there or not."""
        return self.root / key[:2] / key

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, with its digest behind it. Raises UserError where the disk is full."""
        with written_whole(self.path(key), len(data) + DIGEST_BYTES) as partial:
            with open(partial, "wb") as f:
                f.write(data)
                f.write(hashlib.sha256(data).digest())
            self._mark(partial)
        self._evict()

    def get_bytes(self, key: str) -> bytes | None:
        """The bytes stored under `key`, or None where there are none or they are damaged."""
        path = self.path(key)
        try:
            self._use(path)
            with open(path, "rb") as f:
                file = os.fstat(f.fileno())
                data, digest = f.read(max(0, file.st_size - DIGEST_BYTES)), f.read()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).digest() == digest:
            return data
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == file.st_ino:  # else another process has made it anew
                path.unlink()
        return None

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

    def _use(self, path: Path) -> None:
        """Mark an entry as used now. Raises FileNotFoundError where it is not there."""
        if path.stat().st_mtime_ns < self._began:
            with contextlib.suppress(UserError), locked(self.root):  # where nobody can write, nobody evicts
                self._mark(path)

    def _mark(self, path: Path) -> None:
        """Set the time of last use: not before this build began, although the clock of a cluster's machine may say so.

        The kernel's own stamps are up to 10 ms behind the clock that builds begin by.
        """
        now = max(time.time_ns(), self._began)
        os.utime(path, ns=(now, now))

    def _evict(self) -> None:
        if self.limit_bytes is not None:
            evict(self.root, self.limit_bytes, self._began)


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
