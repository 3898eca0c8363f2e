"""One small build of each bundled model, and their store, for all tests of the command and all of their processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.compile.commands import SMALL, build


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that pytest's worker processes have in common."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    root.mkdir(exist_ok=True)
    return root


def once(done: Path, make: Callable[[], None]) -> None:
    """Call `make` in the first process that comes; the others wait until it is done."""
    with FileLock(f"{done}.lock"):
        if not done.exists():
            make()
            done.touch()


@pytest.fixture(scope="session")
def cache(shared: Path) -> Path:
    """The store that `built` fills: exports need not be made again by every test."""
    return shared / "cache"


@pytest.fixture(scope="session")
def built(shared: Path, cache: Path) -> Path:
    """An artifact of shapes-dit with svdq-int4, int4-rtn and fp16. Copy it before changing it."""
    out = shared / "artifact"

    def make() -> None:
        code, stdout, stderr = build("--out", out, "--cache", cache, "--compare", "int4-rtn", *SMALL)
        assert code == 0, stderr
        assert "report.html" in stdout

    once(shared / "built", make)
    return out


@pytest.fixture(scope="session")
def built_text(built: Path, shared: Path, cache: Path) -> Path:
    """As `built`, not calibrated, T5 in 4-bit weights, with 16 ranks of room for LoRAs. Copy it before changing it."""
    out = shared / "text"
    flags = ("--text-encoder-bits", "4", "--reserve-rank", "16", "--data-free", "--references", "0")

    def make() -> None:
        code, _, stderr = build("--out", out, "--cache", cache, "--compare", "int4-rtn", *flags)
        assert code == 0, stderr

    once(shared / "built-text", make)
    return out


@pytest.fixture(scope="session")
def built_unet(shared: Path, cache: Path) -> Path:
    """An artifact of shapes-unet with svdq-int4 and fp16. Copy it before changing it."""
    out = shared / "unet"

    def make() -> None:
        code, _, stderr = build("--model", "shapes-unet", "--out", out, "--cache", cache, *SMALL)
        assert code == 0, stderr

    once(shared / "built-unet", make)
    return out
