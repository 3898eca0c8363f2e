"""Artifacts that the tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engines import tiny


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.flux(tmp_path_factory.mktemp("artifacts") / "flux")


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("artifacts") / "stable-diffusion")


@pytest.fixture(scope="session")
def stable_diffusion_xl(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.stable_diffusion_xl(tmp_path_factory.mktemp("artifacts") / "stable-diffusion-xl")


@pytest.fixture(scope="session")
def flux_fill(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.flux_fill(tmp_path_factory.mktemp("artifacts") / "flux-fill")


@pytest.fixture(scope="session")
def flux_control(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.flux_control(tmp_path_factory.mktemp("artifacts") / "flux-control")


@pytest.fixture
def copied(flux: tiny.Tiny, tmp_path: Path) -> Path:
    """A copy of the FLUX artifact that a test may damage."""
    return Path(shutil.copytree(flux.root, tmp_path / "copy"))


@pytest.fixture(scope="session")
def measured(flux: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of the FLUX artifact with its report written, and the results."""
    from artifact.manifest import Artifact
    from engines.evaluate import evaluate
    from engines.report import write_report

    root = Path(shutil.copytree(flux.root, tmp_path_factory.mktemp("measured") / "flux"))
    artifact = Artifact.open(root)
    results = evaluate(artifact, batch=2, repeats=2, threads=1)
    write_report(artifact, results)
    return root, results
