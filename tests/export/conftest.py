"""The tiny models, saved once for all tests of this folder; tests that change one copy it first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from export.source import Source, open_source
from tests.export import models


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two threads on a busy machine take longer than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flux_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.flux(tmp_path_factory.mktemp("models") / "tiny-flux")


@pytest.fixture(scope="session")
def flux(flux_directory: Path) -> Source:
    return open_source(str(flux_directory))


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(models.stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd")))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(models.stable_diffusion_xl(tmp_path_factory.mktemp("models") / "tiny-sdxl")))


@pytest.fixture
def copy(flux_directory: Path, tmp_path: Path) -> Path:
    """A FLUX directory of the test's own."""
    return Path(shutil.copytree(flux_directory, tmp_path / "copy"))
