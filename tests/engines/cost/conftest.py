"""A tiny artifact whose graphs have both forms."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from artifact import manifest
from artifact.manifest import Artifact
from tests.engines.tiny import Tiny


def both_forms(made: Tiny, root: Path) -> Artifact:
    """A copy of the artifact that says TensorRT parses the portable files."""
    shutil.copytree(made.root, root)
    content = dict(Artifact.open(root, verify=False).manifest)
    for component in content["components"].values():
        component["tensorrt"] = dict(component["models"])
    return manifest.write(root, {k: v for k, v in content.items() if k != "format"})


@pytest.fixture(scope="session")
def tiny_flux(flux: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return both_forms(flux, tmp_path_factory.mktemp("predicted") / "flux")


@pytest.fixture(scope="session")
def tiny_unet(stable_diffusion: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return both_forms(stable_diffusion, tmp_path_factory.mktemp("predicted") / "unet")
