"""Directories named by the hash of all that made them, made once and whole.

They lie below $SVDQ_CACHE/plugins, else ~/.cache/svdq-edge/plugins. Any of them may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from plugins.errors import PluginError


def root() -> Path:
    """The directory of all entries."""
    return Path(os.environ.get("SVDQ_CACHE") or Path.home() / ".cache" / "svdq-edge") / "plugins"


def entry(key: str, make: Callable[[Path], None]) -> Path:
    """The directory of `key`; where it is not there yet, `make` fills an empty one that then becomes it.

    Several processes may ask at once: one makes, the others wait. Nothing is left where `make` raises. Raises
    PluginError where the cache cannot be written.
    """
    final = root() / key
    if final.is_dir():
        return final
    with locked(key):
        if final.is_dir():
            return final
        partial = final.with_name(f"{key}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that died: we hold the lock
        partial.mkdir()
        try:
            make(partial)
            _to_disk(partial)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """Be the only process in this block of that name. Yields the root, which exists then.

    Raises PluginError where it cannot be written, in the block too.
    """
    try:
        root().mkdir(parents=True, exist_ok=True)
        with FileLock(root() / f"{name}.lock"):
            yield root()
    except OSError as e:
        raise PluginError(
            f"Cannot write the cache {root()} ({e.strerror or e}): make room there, or name another in SVDQ_CACHE."
        ) from e


def key_of(*parts: str | bytes) -> str:
    """SHA-256 over the parts, each with its length so that no two lists collide; 32 hex digits."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(f"{len(data)} ".encode() + data)
    return h.hexdigest()[:32]


def files_key(files: Iterable[Path], base: Path) -> str:
    """The hash of files' contents and of their names relative to `base`."""
    parts: list[str | bytes] = []
    for file in sorted(files):
        parts += [file.relative_to(base).as_posix(), file.read_bytes()]
    return key_of(*parts)


def _to_disk(directory: Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
