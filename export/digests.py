"""Known digests of a model's files: SHA256SUMS.json beside it, or the names that a hub cache gives its blobs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from artifact.errors import UserError
from artifact.files import in_threads, sha256, sha256s, write_json
from export.finite import digest_and_fault

SUMS = "SHA256SUMS.json"  # {path relative to the directory, with "/": hex digest}
_LFS_BLOB = re.compile(r"[0-9a-f]{64}")  # hub caches name files kept in LFS by their sha256


def write_sums(directory: Path) -> dict[str, str]:
    """Write SHA256SUMS.json over every file below `directory` (itself apart) and return it."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != SUMS)
    sums = {p.relative_to(directory).as_posix(): digest for p, digest in zip(files, sha256s(files), strict=True)}
    write_json(directory / SUMS, sums)
    return sums


def checked_digests(directory: Path, files: list[Path]) -> dict[str, str]:
    """{relative path: sha256} of `files`, each compared with what is known of it.

    Raises UserError where a digest differs, where SHA256SUMS.json does not list a file that is read, or where a weight
    is NaN or Inf.
    """
    known = _known_sums(directory)
    digests = {}
    for file, (digest, fault) in zip(files, in_threads(_read, files), strict=True):
        name = file.relative_to(directory).as_posix()
        digests[name] = digest
        blob = file.resolve().name
        expected = known.get(name) if known is not None else blob if _LFS_BLOB.fullmatch(blob) else digests[name]
        if expected is None:
            raise UserError(f"{SUMS} in {directory} does not list {name}: remove the file, or write the sums anew.")
        if expected != digests[name]:
            raise UserError(
                f"{file} has sha256 {digests[name][:12]}…, {expected[:12]}… is known for it: the data was changed or "
                "damaged; download it again."
            )
        if fault is not None:
            raise UserError(f"{file} is broken ({fault}): give a model whose weights are all finite numbers.")
    return digests


def _read(file: Path) -> tuple[str, str | None]:
    """A file's digest, and what is wrong with its weights."""
    return digest_and_fault(file) if file.suffix == ".safetensors" else (sha256(file), None)


def _known_sums(directory: Path) -> dict[str, str] | None:
    path = directory / SUMS
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        raise UserError(f"{path} is not JSON: write it anew with `python -m export.source --write-sums`.") from None
