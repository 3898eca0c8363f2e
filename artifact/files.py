"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifact.errors import UserError

PARTIAL = ".partial"  # suffix of what is being written; anything that ends so is safe to delete


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def _digest(f: Any) -> str:
    """hashlib.file_digest for Python 3.10."""
    h = hashlib.sha256()
    while block := f.read(1 << 20):
        h.update(block)
    return h.hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; when the block ends well it is fsynced and renamed to `path`, else removed.

    Raises UserError where the disk is full or the directory cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(e, OSError):
            raise as_user_error(e, path) from e
        raise


def as_user_error(error: OSError, path: Path) -> Exception:
    """The sentence for an operating-system error met while writing `path`; the error itself where it is no user's."""
    # numpy's tofile reports a short write, which is a full disk, without an errno.
    short = error.errno is None and " requested and " in str(error)
    if error.errno == errno.ENOSPC or short:
        free = shutil.disk_usage(_existing(path)).free
        return UserError(
            f"The disk that holds {path.parent} is full ({free / 2**20:.0f} MiB free): make space or choose another "
            "directory, then run the same command again; finished steps are kept."
        )
    if error.errno in _NOT_WRITABLE:
        return UserError(f"Cannot write {path} ({error.strerror}): choose a place that you can write to.")
    return error


_NOT_WRITABLE = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ENOENT", "ENAMETOOLONG", "ELOOP")
}


def _existing(path: Path) -> Path:
    """The nearest directory above `path` that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, keys sorted so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def remove_partials(directory: Path) -> None:
    """Delete what a killed run left half-written below `directory`."""
    for path in list(Path(directory).rglob(f"*{PARTIAL}")):
        if path.is_dir():  # a model that was being written
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def inside(directory: Path, name: str) -> Path:
    """`directory/name`, refused where it would lie outside `directory` or is a link out of it.

    Raises UserError naming the path.
    """
    root = Path(directory).resolve()
    path = (root / name).resolve()
    if os.path.isabs(name) or root not in path.parents:
        raise UserError(
            f"{name!r} leads out of {directory}: the artifact was tampered with or moved apart; rebuild it."
        )
    return path
