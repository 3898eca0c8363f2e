"""A directory as one .tar.zst whose bytes depend on nothing but the files' names and contents."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection
from pathlib import Path

from artifact.errors import UserError
from artifact.files import written_whole

LEVEL = 3  # 4-bit weights are as good as random: a higher level only takes longer


def write_archive(directory: Path, to: Path, name: str, leave_out: Collection[str] = ()) -> None:
    """Pack `directory` (but for those names in it) as the directory `name`, sorted; no times, owners or groups.

    Raises UserError where the disk is full or the zstandard package is missing.
    """
    try:
        import zstandard
    except ImportError:
        raise UserError("Writing a .tar.zst needs the zstandard package: pip install zstandard.") from None
    files = [
        p for p in sorted(directory.rglob("*")) if p.is_file() and p.relative_to(directory).parts[0] not in leave_out
    ]
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    with (
        written_whole(to) as partial,
        open(partial, "wb") as raw,
        compressor.stream_writer(raw, closefd=False) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in files:
            entry = tarfile.TarInfo(f"{name}/{path.relative_to(directory).as_posix()}")
            entry.size = path.stat().st_size
            entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with open(path, "rb") as content:
                tar.addfile(entry, content)
