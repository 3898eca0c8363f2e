"""An engine takes a LoRA's weights by a refit where its graph had room, and by a build where not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from artifact import manifest as manifests
from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import targets
from engines.trt import plan
from engines.trt.build import Built, build_engines
from engines.trt.job import Options
from engines.trt.refit import structure_sha256
from passes.lora import Added, ExtendBranch, ranks
from passes.presets import plugin_form
from passes.write import write_model
from tests.engines.trt.conftest import PYTHON_VERSIONS
from tests.engines.trt.small import PRESET

ORIN = targets.find("agx-orin")
LAYER = "attn.to_qkv"
Put = Callable[..., Any]


@pytest.fixture
def roomy(artifact: Artifact) -> Artifact:
    """The small artifact with room for a LoRA of rank 16."""
    portable = artifact.model("transformer", PRESET)
    return changed(artifact, plugin_form(16)(ir.load(portable)).model, "roomy", [])


def changed(artifact: Artifact, model: ir.Model, name: str, shared: Sequence[Path]) -> Artifact:
    """The artifact with another plugin form of its transformer, beside those that it has."""
    path = artifact.root.resolve() / f"transformer/{PRESET}.{name}.trt.onnx"
    names = [str(p.relative_to(artifact.root.resolve())) for p in write_model(model, path, shared=shared)]
    content = copy.deepcopy({k: v for k, v in artifact.manifest.items() if k != "format"})
    content["components"]["transformer"]["tensorrt"][PRESET] = str(path.relative_to(artifact.root.resolve()))
    content["files"] |= manifests.record(artifact.root, names)
    return manifests.write(artifact.root, content)


def with_lora(artifact: Artifact, rank: int) -> Artifact:
    """The artifact as `export.lora` leaves it: what is new in files of its own, all the rest where it was."""
    own = ranks(ir.load(artifact.model("transformer", PRESET)))
    path = artifact.tensorrt("transformer", PRESET)
    model = ir.load(path)
    node = next(n for n in model.graph if n.name == LAYER)
    down = np.full((node.attributes["k"].as_int(), rank), 0.25, np.float32)
    up = np.full((rank, node.attributes["n"].as_int()), 0.5, np.float32)
    ExtendBranch({LAYER: Added(rank, lambda: down, lambda: up)}, own)(model)
    return changed(artifact, model, f"lora-{rank}", [path.with_name(f"{path.name}.data")])


def build(artifact: Artifact, library: Path, **given: Any) -> tuple[Built, list[str]]:
    said: list[str] = []
    options = given.pop("options", Options(refit=True))
    return build_engines(artifact, PRESET, ORIN, library=library, options=options, say=said.append, **given), said


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_with_room_only_the_graph_s_engine_is_refitted_and_is_found(
    roomy: Artifact, library: Path, with_module: Put, version: str
) -> None:
    trt = with_module(version)
    build(roomy, library)
    after = with_lora(roomy, 16)
    with pytest.raises(UserError, match="was built from another transformer graph"):  # not used in silence
        plan.find(after, "transformer", PRESET)
    trt.Builder.build_serialized_network = None  # nothing may be built
    built, said = build(after, library)
    (line,) = [line for line in said if "refitted" in line]
    assert line.strip().startswith(f"transformer.{PRESET}.sm87.trt") and "with the graph's new weights" in line
    assert sum("is there already" in line for line in said) == 2 and len(built.plans) == 3
    found, graph = plan.find(after, "transformer", PRESET), after.tensorrt("transformer", PRESET)
    assert found.metadata["refittable"] and found.metadata["onnx_sha256"] == plan.graph_sha256(after, graph)
    assert found.path.read_bytes() == b"engine of " + str(graph).encode()


def test_without_room_the_engine_is_built_again(roomy: Artifact, library: Path, with_module: Put) -> None:
    with_module("10.3.0")
    build(roomy, library)
    built, said = build(with_lora(roomy, 24), library)
    assert not [line for line in said if "refitted" in line] and len(built.plans) == 3
    assert plan.find(Artifact.open(roomy.root), "transformer", PRESET) == built.plans[1]


def test_an_engine_that_was_not_made_for_it_is_built_again(roomy: Artifact, library: Path, with_module: Put) -> None:
    with_module("10.3.0")
    build(roomy, library, options=Options())
    _, said = build(with_lora(roomy, 16), library)
    assert not [line for line in said if "refitted" in line]


@pytest.mark.parametrize("fault", ["weights", "refit"])
def test_an_engine_that_takes_no_weights_is_built_again_and_that_is_said(
    roomy: Artifact, library: Path, with_module: Put, fault: str
) -> None:
    trt = with_module("10.3.0")
    build(roomy, library)
    trt.fault = fault
    built, said = build(with_lora(roomy, 16), library)
    (line,) = [line for line in said if "refitted" in line]
    assert "is built again, for it cannot be refitted: TensorRT 10.3.0" in line and "No importer" in line
    assert plan.find(Artifact.open(roomy.root), "transformer", PRESET) == built.plans[1]


def test_tensorrt_11_3_loses_biases_and_builds_nothing_to_be_refitted(
    roomy: Artifact, library: Path, with_module: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_module("11.1.0")
    monkeypatch.setattr("engines.trt.versions.NO_REFIT", (11, 1))
    with pytest.raises(UserError, match="TensorRT 11.1.0 can lose a bias .* leave out --refit"):
        build(roomy, library)
    assert len(build(roomy, library, options=Options())[0].plans) == 3


def test_the_structure_is_all_but_the_numbers_of_float_weights(roomy: Artifact) -> None:
    def structure(artifact: Artifact) -> str:
        return structure_sha256(artifact, artifact.tensorrt("transformer", PRESET))

    before = structure(roomy)
    assert structure(with_lora(roomy, 16)) == before
    assert structure(with_lora(roomy, 24)) != before
    manifest = copy.deepcopy(roomy.manifest)
    manifest["files"][f"transformer/{PRESET}.roomy.trt.onnx.data"]["sha256"] = "0" * 64  # other 4-bit codes there
    assert structure(Artifact(roomy.root, manifest)) != before
