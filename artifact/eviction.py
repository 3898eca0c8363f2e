"""What a store gives up to stay within a size: the entries used least recently, and none that a build still needs.

An entry's modification time says when it was last used. Builds leave word of when they began in a file that they hold
locked: the operating system lets go of it when they die, so that a killed build protects nothing. Whoever deletes or
marks entries holds the store's lock, so that an entry is not deleted between being found and being marked.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from artifact.files import PARTIAL, as_user_error

LOCK = ".store.lock"
BUILDS = ".builds"  # a locked file for each running build, named by the nanosecond in which it began
ENTRIES = "??/*"
CLOCKS_NS = 3_600_000_000_000  # an hour: further apart than the clocks of machines that share a store


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the store for a moment. Raises UserError where it cannot be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / LOCK)
        lock.acquire(poll_interval=0.005)
    except OSError as e:
        raise as_user_error(e, root / LOCK) from e
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def protected(root: Path, began: int) -> Iterator[None]:
    """While the block runs, no process evicts an entry that was used since `began` (nanoseconds since 1970).

    What killed builds left half-written is deleted first.
    """
    name = root / BUILDS / f"{began}-{uuid.uuid4().hex}"
    with locked(root):
        _sweep(root)
        name.parent.mkdir(exist_ok=True)
        lock = FileLock(name)
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        name.unlink(missing_ok=True)
        lock.release()


def evict(root: Path, limit: int, began: int) -> None:
    """Delete the entries used least recently until all together have at most `limit` bytes.

    Those used since `began`, or since any running build began, stay even where they alone have more.
    """
    if sum(size for _, size, _ in _entries(root)) <= limit:
        return
    with locked(root):
        needed = min([began, *_running(root)])
        entries = _entries(root)
        total = sum(size for _, size, _ in entries)
        for used, size, path in sorted(entries):
            if total <= limit or used >= needed:
                return
            path.unlink(missing_ok=True)
            total -= size


def _sweep(root: Path) -> None:
    """Delete what killed builds left half-written, and nothing that a running one may be writing."""
    running = _running(root)
    for path in root.glob(f"{ENTRIES}{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            if not running or path.stat().st_mtime_ns < min(running) - CLOCKS_NS:
                path.unlink()


def _entries(root: Path) -> list[tuple[int, int, Path]]:
    """(last used, bytes, path) of every entry; those that go meanwhile, or are only being written, are left out."""
    found = []
    for path in root.glob(ENTRIES):
        if path.name.endswith(PARTIAL):
            continue
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    return found


def _running(root: Path) -> list[int]:
    """When the builds began that are still running; what dead ones left is deleted."""
    began = []
    for path in (root / BUILDS).glob("*"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            began.append(int(path.name.split("-")[0]))
            continue
        path.unlink(missing_ok=True)
        lock.release()
    return began
