"""Bundles of tiny artifacts, and a device to put them on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from artifact import manifest as manifests
from artifact.manifest import Artifact
from engines.deploy.bundle import write_bundle
from engines.references import TENSORS
from engines.targets import find
from tests.engines import tiny
from tests.engines.deploy.jetson import Jetson, compile_libcuda, place


def with_tensorrt(root: Path, to: Path) -> Path:
    """A copy of a tiny artifact whose graphs are their own form for TensorRT and whose references are in C order."""
    shutil.copytree(root, to)
    content = json.loads((to / manifests.NAME).read_text())
    tensors = load_file(to / TENSORS)
    pictures = sorted((to / "references/images").glob("*.png"))
    tensors["images"] = np.stack([np.asarray(Image.open(p)) for p in pictures])
    save_file(tensors, to / TENSORS)
    content["files"] |= manifests.record(to, [TENSORS])
    for component in content["components"].values():
        component["tensorrt"] = component["models"]
    manifests.write(to, content)
    return to


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_libcuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def jetson(tmp_path: Path, libcuda: Path) -> Callable[[Path], Jetson]:
    """Puts a copy of a bundle on a device."""
    return lambda bundle: place(bundle, tmp_path, libcuda)


def bundled(artifact: tiny.Tiny, to: Path, **options: Any) -> Path:
    """The bundle of a tiny artifact for an Orin Nano."""
    return write_bundle(Artifact.open(with_tensorrt(artifact.root, to)), find("orin-nano"), **options)


@pytest.fixture(scope="session")
def flux_bundle(flux: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled(flux, tmp_path_factory.mktemp("bundles") / "flux")


@pytest.fixture(scope="session")
def sd_bundle(stable_diffusion: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled(stable_diffusion, tmp_path_factory.mktemp("bundles") / "sd")


@pytest.fixture(scope="session")
def sdxl_bundle(stable_diffusion_xl: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled(stable_diffusion_xl, tmp_path_factory.mktemp("bundles") / "sdxl")
