"""Which backend runs an artifact, and which of its nodes ran where."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.backends import BACKENDS, WeightStreaming, choose_backend, runner
from engines.placement import Placement, read_profile
from engines.session import Session
from tests.engines.tiny import Tiny

# What onnxruntime-gpu writes, by its documentation of profiling and the events of the CPU build: written by hand, not
# recorded on a GPU. Two runs of one node, a copy, an event of the session, and two nodes that the CPU ran.
PROFILE = [
    {"cat": "Session", "name": "model_loading_uri", "args": {}},
    *(
        {"cat": "Node", "name": f"{name}_kernel_time", "args": {"op_name": op, "provider": provider, "node_index": i}}
        for name, op, provider, i in (
            ("conv", "Conv", "CUDAExecutionProvider", "3"),
            ("conv", "Conv", "CUDAExecutionProvider", "3"),
            ("matmul", "MatMul", "CUDAExecutionProvider", "4"),
            ("Memcpy_1", "MemcpyToHost", "CUDAExecutionProvider", "9"),
            ("shape", "Shape", "CPUExecutionProvider", "0"),
            ("shape_1", "Shape", "CPUExecutionProvider", "1"),
            ("gather", "Gather", "CPUExecutionProvider", "2"),
        )
    ),
]


def test_nodes_that_fell_back_are_counted_by_operator(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE), encoding="utf-8")
    found = read_profile(tmp_path / "profile.json")
    assert found.nodes["CUDAExecutionProvider"] == {"Conv": 1, "MatMul": 1}
    assert found.fallen_back == {"Shape": 2, "Gather": 1} and found.total == 5
    assert str(found) == "3 of 5 nodes fell back to the CPU (Shape 2, Gather 1)"
    assert str(Placement({"CUDAExecutionProvider": {"Conv": 2}})) == "all 2 nodes on CUDA"


def test_onnxruntime_s_own_profile_is_read_and_removed(
    flux: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    artifact = Artifact.open(flux.root, verify=False)
    session = Session(artifact.model("text_encoder", "fp16"), "text_encoder", threads=1, profiled=True)
    feeds = {"input_ids": np.ones((1, 8), np.int64)}
    first = session.run(feeds)
    assert session.placement is not None and list(session.placement.nodes) == ["CPUExecutionProvider"]
    assert session.placement.nodes["CPUExecutionProvider"]["MatMul"] >= 4 and session.placement.fallen_back == {}
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(session.run(feeds)["last_hidden_state"], first["last_hidden_state"])
    session.close()
    session.run(feeds)  # opened again, it is not profiled again
    assert list(tmp_path.iterdir()) == []


def test_without_another_provider_nothing_is_profiled(flux: Tiny) -> None:
    artifact = Artifact.open(flux.root, verify=False)
    session = runner(artifact, "vae_decoder", "fp16", "onnxruntime", 1)
    assert isinstance(session, Session) and not isinstance(session, WeightStreaming)
    session.run({"latent_sample": np.zeros((1, 4, 8, 8))})
    assert session.placement is None


def test_a_backend_that_is_none_is_refused(flux: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact.open(flux.root, verify=False)
    assert BACKENDS == ("auto", "onnxruntime", "tensorrt")
    assert choose_backend(artifact, "fp16", "auto") == choose_backend(artifact, "fp16", "onnxruntime") == "onnxruntime"
    with pytest.raises(UserError, match="no backend 'tensorRT': did you mean 'tensorrt'"):
        choose_backend(artifact, "fp16", "tensorRT")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match="tensorrt is not installed"):
        choose_backend(artifact, "fp16", "tensorrt")
