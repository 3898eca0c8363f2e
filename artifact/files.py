"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from artifact.errors import UserError

T = TypeVar("T")

PARTIAL = ".partial"  # suffix of what is being written; anything that ends so is safe to delete


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def sha256s(paths: Sequence[Path]) -> list[str]:
    """Hex digests of several files."""
    return in_threads(sha256, paths)


def in_threads(function: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    """`function` of every path, side by side: for what lets other threads run, as hashing and reading do."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(function, paths))


def _digest(f: Any) -> str:
    """hashlib.file_digest for Python 3.10."""
    h = hashlib.sha256()
    while block := f.read(1 << 20):
        h.update(block)
    return h.hexdigest()


@contextlib.contextmanager
def written_whole(path: Path, size: int | None = None) -> Iterator[Path]:
    """Yield a path beside `path`; when the block ends well it is fsynced and renamed to `path`, else removed.

    `size`: bytes that will be written, where that is known before. Raises UserError where the disk is full, or has
    less room than that, or the directory cannot be written.
    """
    path = Path(path)
    # Containers and machines that share a directory may have processes of one number.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is not None:
            check_room(path, size)
        yield partial
        with open(partial, "rb") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(e, OSError):
            raise as_user_error(e, path, size) from e
        raise


def check_room(path: Path, size: int) -> None:
    """Raises UserError where the disk that is to hold `path` has fewer than `size` bytes free."""
    usage = shutil.disk_usage(_existing(path))
    if usage.total and usage.free < size:  # some network file systems tell nothing
        raise _full(path, size)


def as_user_error(error: OSError, path: Path, size: int | None = None) -> Exception:
    """The sentence for an operating-system error met while writing `path`; the error itself where it is no user's.

    `size`: bytes that were to be written there, where that is known. To be called when what was written is deleted.
    """
    # numpy's tofile reports a short write, which is a full disk, without an errno.
    short = error.errno is None and " requested and " in str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or short:
        return _full(path, size)
    if error.errno in _NOT_WRITABLE:
        return UserError(f"Cannot write {path} ({error.strerror}): choose a place that you can write to.")
    return error


def _full(path: Path, size: int | None) -> UserError:
    """The sentence for a disk without room for `path`."""
    free = f"{_mebibytes(shutil.disk_usage(_existing(path)).free, math.floor)} free"
    needed = "" if size is None else f", {_mebibytes(size, math.ceil)} needed"
    return UserError(
        f"The disk that holds {path.parent} is full ({free}{needed}): make space or choose another directory, then "
        "run the same command again; finished steps are kept."
    )


def _mebibytes(size: int, whole: Callable[[float], int]) -> str:
    """Free space is rounded down and a need up, so that no sentence says that 3 MiB do not fit into 3 MiB."""
    return f"{whole(size / 2**20)} MiB"


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


def remove_partials(directory: Path, shared: Path | None = None) -> None:
    """Delete what a killed run left half-written below `directory`, which no other process writes to.

    `shared`: a directory below it that others may be writing to now; it is left alone.
    """
    for path in list(Path(directory).rglob(f"*{PARTIAL}")):
        if shared is not None and shared.resolve() in path.resolve().parents:
            continue
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
