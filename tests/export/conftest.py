"""The tiny models, saved once for all tests of this folder; tests that change one copy it first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from artifact.store import Store
from export.components import components
from export.graph_cache import prepared
from export.source import Source, open_source
from tests.export import models
from tests.export.families import graph_store


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


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    return graph_store(tmp_path_factory)


@pytest.fixture(scope="session")
def graph(request, store):
    """(source name, component name, dtype) → (source, component, graph)."""

    def get(source_name: str, name: str, dtype: str = "float32"):
        source = request.getfixturevalue(source_name)
        component = next(c for c in components(source) if c.name == name)
        return source, component, prepared(source, component, dtype, store)

    return get
