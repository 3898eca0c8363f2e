"""Every run's result as one line of OUT/validation/history.jsonl, safe against other runs that append at the same time.

A line appears whole: under a lock and in one write, which is taken back where the disk could not hold all of it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from artifact.errors import UserError
from artifact.files import as_user_error

NAME = "validation/history.jsonl"
PATIENCE = 30.0  # seconds to wait for another run that is appending


def append(root: Path, result: Mapping[str, Any]) -> Path:
    """Add `result` to the history of the artifact in `root`; the file's path.

    Raises UserError where it cannot be written; what was there stays as it was.
    """
    path = root / NAME
    line = json.dumps(result, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".history.lock"), timeout=PATIENCE):
            _write(path, line.encode())
    except Timeout:
        raise UserError(f"{path} has been held by another run for {PATIENCE:g} s: end that run, then repeat.") from None
    except OSError as e:
        raise as_user_error(e, path) from e
    return path


def _write(path: Path, line: bytes) -> None:
    """One write at the file's end, on a line of its own even where a killed writer left half a line."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(file).st_size
        if before and os.pread(file, 1, before - 1) != b"\n":
            line = b"\n" + line
        if os.write(file, line) < len(line):
            os.ftruncate(file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file)
    finally:
        os.close(file)


def read(root: Path, format: int) -> tuple[list[dict[str, Any]], str | None]:
    """All runs of this `format`, the oldest first, and a sentence about lines that are not such runs (None: all are).

    Raises UserError where there is a history that cannot be read.
    """
    path = root / NAME
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except FileNotFoundError:
        return [], None
    except OSError as e:
        raise UserError(f"Cannot read {path} ({e.strerror}): make it readable or move it away.") from None
    runs = []
    for line in lines:
        try:
            run = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(run, dict) and run.get("format") == format:
            runs.append(run)
    damaged = len(lines) - len(runs)
    return runs, f"{damaged} of {len(lines)} lines of {path} cannot be read and were left out." if damaged else None
