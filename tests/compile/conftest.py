"""One small build of each bundled model, and their store, for all tests of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compile.commands import SMALL, build


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that `built` fills: exports need not be made again by every test."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """An artifact of shapes-dit with svdq-int4, int4-rtn and fp16."""
    out = tmp_path_factory.mktemp("built") / "artifact"
    code, stdout, stderr = build("--out", out, "--cache", cache, "--compare", "int4-rtn", *SMALL)
    assert code == 0, stderr
    assert "report.html" in stdout
    return out


@pytest.fixture(scope="session")
def built_unet(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """An artifact of shapes-unet with svdq-int4 and fp16."""
    out = tmp_path_factory.mktemp("built") / "unet"
    code, _, stderr = build("--model", "shapes-unet", "--out", out, "--cache", cache, *SMALL)
    assert code == 0, stderr
    return out
