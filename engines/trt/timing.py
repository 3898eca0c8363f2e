"""The timing cache: what TensorRT measured of its kernels, kept per GPU and TensorRT so that the next build is short.

A cache of another GPU or version, or a damaged one, is worth nothing, but no reason to stop: it is left out with a
warning, and a new one replaces it. (TensorRT itself ends some of these builds with an error.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import UserError
from artifact.files import write_json, written_whole
from engines.trt.versions import Version

Say = Callable[[str], None]


@dataclass(frozen=True)
class TimingCache:
    """The cache for compute capability `sm` and `version`: `path`, and beside it, in JSON, what it was made for."""

    path: Path
    sm: int
    version: Version

    @classmethod
    def of(cls, directory: Path, sm: int, version: Version) -> TimingCache:
        """The cache in `directory`, whether it is there or not."""
        return cls(directory / f"timing.sm{sm}.trt{version}.cache", sm, version)

    @property
    def record(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def read(self, say: Say) -> bytes:
        """Its bytes; b"" where there is none, or one that does not fit, of which `say` is told."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return b""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if record != self._about(data):
            say(self.ignored("it was changed, or made for another GPU or TensorRT"))
            return b""
        return data

    def write(self, data: bytes, say: Say) -> None:
        """Keep `data`. A disk that is full costs the cache, not the engine: `say` is told."""
        try:
            with written_whole(self.path) as partial:
                partial.write_bytes(data)
            write_json(self.record, self._about(data))
        except UserError as e:
            say(f"warning: the timing cache is not kept: {e}")

    def ignored(self, why: str) -> str:
        """The warning for a cache that is left out."""
        return f"warning: the timing cache {self.path.name} is ignored ({why}); this build takes longer and renews it."

    def _about(self, data: bytes) -> dict[str, str]:
        return {"sm": str(self.sm), "tensorrt": str(self.version), "sha256": hashlib.sha256(data).hexdigest()}
