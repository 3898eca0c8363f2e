"""Which engines may be loaded: every reason against it is one sentence with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from artifact.errors import UserError
from artifact.files import sha256
from artifact.manifest import Artifact
from engines import targets
from engines.trt import machine, plan, versions
from engines.trt.build import build_engines
from engines.trt.plan import Plan
from engines.trt.versions import Version
from tests.engines.trt import stand_in_tensorrt
from tests.engines.trt.small import PRESET


@pytest.fixture
def built(artifact: Artifact, library: Path, with_module: Callable[[str], Any]) -> Plan:
    """The transformer's engine, on a machine that may load it."""
    with_module("10.3.0")
    plans = build_engines(artifact, PRESET, targets.find("agx-orin"), library=library, say=lambda s: None).plans
    return plans[1]


def refused(artifact: Artifact, match: str, **given: Any) -> None:
    with pytest.raises(UserError, match=match) as raised:
        plan.find(artifact, "transformer", PRESET, **given)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_it_is_found_where_it_belongs(artifact: Artifact, built: Plan) -> None:
    assert built.path.name == "transformer.svdq-int4.sm87.trt10.3.plan"
    assert plan.find(artifact, "transformer", PRESET) == built
    assert plan.find(artifact, "transformer", PRESET, sm=87, tensorrt=Version(10, 3)) == built


def test_a_damaged_file_is_not_loaded(artifact: Artifact, built: Plan) -> None:
    whole = built.path.read_bytes()
    built.path.write_bytes(whole[:-1])
    refused(artifact, rf"has {len(whole) - 1} bytes and was built with {len(whole)}")
    built.path.write_bytes(whole[:-1] + b"?")
    refused(artifact, "is not the engine that was built")
    built.path.write_bytes(b"")
    refused(artifact, "has 0 bytes")
    built.path.unlink()
    refused(artifact, "is missing, only its record is there")


def test_its_gigabytes_are_read_once_for_their_hash(
    artifact: Artifact, built: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(plan, "sha256", lambda path: (read.append(path), sha256(path))[1])
    plan._sha256.cache_clear()
    for _ in range(3):
        plan.find(artifact, "transformer", PRESET)
    assert read.count(built.path) == 1


def test_without_its_record_it_is_not_loaded(artifact: Artifact, built: Plan) -> None:
    record = plan.sidecar(built.path)
    content = json.loads(record.read_text(encoding="utf-8"))
    for text, match in (
        ('{"format": 1', "is not the record of an engine"),
        ("[]", "is not the record of an engine"),
        (json.dumps(content | {"format": 2}), "has format 2, this version reads 1"),
        (json.dumps({k: v for k, v in content.items() if k != "sm"}), "has format 1"),
    ):
        record.write_text(text, encoding="utf-8")
        refused(artifact, match)
    record.unlink()
    refused(artifact, "has no record beside it, so its build was cut short")


def test_on_another_gpu_or_tensorrt_there_is_none_and_the_message_names_what_there_is(
    artifact: Artifact, built: Plan
) -> None:
    refused(artifact, rf"no engine of transformer .* on sm_89 .*\(only {built.path.name}\): run .*engines.build", sm=89)
    refused(artifact, "with TensorRT 10.16 ", tensorrt=Version(10, 16))
    refused(artifact, "sm_87 with TensorRT 10.3.0 and this is sm_87 with TensorRT 10.3.1", tensorrt=Version(10, 3, 1))
    built.path.rename(built.path.with_name("transformer.svdq-int4.sm89.trt10.3.plan"))
    plan.sidecar(built.path).rename(built.path.with_name("transformer.svdq-int4.sm89.trt10.3.plan.json"))
    refused(artifact, "was built for sm_87 with TensorRT 10.3.0 and this is sm_89", sm=89)


def test_a_renamed_engine_is_not_taken_for_another_component(artifact: Artifact, built: Plan) -> None:
    for end in ("", ".json"):
        source = built.path.with_name(built.path.name.replace("transformer", "vae_decoder") + end)
        source.replace(source.with_name(source.name.replace("vae_decoder", "transformer")))
    refused(artifact, "is the engine of vae_decoder for svdq-int4, renamed")


def test_with_another_plugin_or_none_it_is_not_loaded(artifact: Artifact, built: Plan) -> None:
    library = artifact.root / "plugin/sm87/libsvdq_plugin.so"
    library.write_bytes(b"other kernels")
    refused(artifact, r"needs the plugin library that it was built with .* plugin/sm87 has the hash [0-9a-f]{12}:")
    library.unlink()
    refused(artifact, "plugin/sm87 is missing")
    assert plan.find(artifact, "vae_decoder", PRESET)  # no 4-bit layers, no plugin


def test_of_another_artifact_it_is_not_loaded(artifact: Artifact, built: Plan) -> None:
    artifact.manifest["source"]["sha256"] = "6" * 64
    refused(artifact, "was built from another model than")
    artifact.manifest["source"]["sha256"] = "5" * 64
    graph = artifact.tensorrt("transformer", PRESET)
    proto = onnx.load(str(graph), load_external_data=False)
    proto.doc_string = "another"
    onnx.save(proto, str(graph))
    refused(artifact, "was built from another transformer graph")


def test_without_a_gpu_or_tensorrt_it_says_which_is_missing(
    artifact: Artifact, built: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "python_module", lambda: None)
    monkeypatch.setattr(machine, "sm", lambda: None)
    refused(artifact, "This machine has no NVIDIA GPU to run engines with")
    monkeypatch.setattr(machine, "sm", lambda: 87)
    refused(artifact, "This machine has no TensorRT to run engines with")


def test_the_stand_in_lacks_what_the_version_lacks() -> None:
    """Else the tests of the Python builder would prove nothing."""
    ten, eleven = stand_in_tensorrt.module("10.3.0"), stand_in_tensorrt.module("11.1.0")
    assert hasattr(ten.BuilderFlag, "FP16") and not hasattr(eleven.BuilderFlag, "FP16")
    for trt in (ten, eleven):
        with pytest.raises(AttributeError, match="max_workspace_size"):
            trt.IBuilderConfig().max_workspace_size = 1
    ten.IBuilderConfig().algorithm_selector = None
    with pytest.raises(AttributeError, match="algorithm_selector"):
        eleven.IBuilderConfig().algorithm_selector = None
