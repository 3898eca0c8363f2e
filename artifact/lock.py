"""One build at a time in a directory."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from artifact.errors import UserError
from artifact.files import as_user_error


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process; the operating system lets go of it when the process dies.

    Raises UserError naming the process that holds it.
    """
    owner = directory / ".lock.owner"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock")
        lock.acquire(timeout=0)
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    except Timeout:
        who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "another process"
        raise UserError(
            f"{directory} is being built by {who}: wait for it to end, or build with another --out."
        ) from None
    except OSError as e:
        raise as_user_error(e, directory / ".lock") from e
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
