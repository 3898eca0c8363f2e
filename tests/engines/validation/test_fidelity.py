"""Drawing in batches gives what one batch gives; an engine is fed one image at a time; disk counts engines that run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import engines
from artifact.manifest import Artifact
from artifact.sampling import Sampled
from engines.validation import fidelity
from engines.validation.comparison import choose_comparison
from engines.validation.disk import disk
from tests.engines.tiny import Tiny


def test_batches_are_put_together_in_order(flux: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = choose_comparison(Artifact.open(flux.root), "int4-rtn")
    with engines.load(flux.root, "int4-rtn", threads=1) as pipe:
        whole = fidelity.drawn(pipe, comparison, "")
        monkeypatch.setattr(fidelity, "MOST_PER_CALL", 2)
        told: list[tuple[int, int, str]] = []
        parts = fidelity.drawn(pipe, comparison, "images", lambda *now: told.append(now))
    assert told == [(0, 3, "images"), (2, 3, "images")]
    assert np.abs(parts.images.astype(int) - whole.images).max() <= 1
    np.testing.assert_allclose(parts.latents, whole.latents, atol=1e-3)


@pytest.mark.parametrize(("backend", "batches"), [("onnxruntime", [3]), ("tensorrt", [1, 1, 1])])
def test_an_engine_is_given_one_image_at_a_time(
    flux: Tiny, monkeypatch: pytest.MonkeyPatch, backend: str, batches: list[int]
) -> None:
    seen: list[int] = []

    def sample(pipe: Any, prompts: list[str], noise: np.ndarray, call: dict[str, Any], *_: Any) -> Sampled:
        seen.append(len(prompts))
        assert len(noise) == len(prompts)
        return Sampled(np.zeros((len(prompts), 8, 8, 3), np.uint8), np.zeros((len(prompts), 3, 4)))

    monkeypatch.setattr(fidelity, "sample", sample)
    pipe = SimpleNamespace(backend=backend, diffusers=lambda: None)
    drawn = fidelity.drawn(pipe, choose_comparison(Artifact.open(flux.root), "int4-rtn"), "")
    assert seen == batches and len(drawn.images) == 3


def test_large_images_are_drawn_one_by_one(flux: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = choose_comparison(Artifact.open(flux.root), "int4-rtn")
    comparison.generation.update(height=1024, width=1024)
    seen: list[int] = []
    empty = Sampled(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 3, 4)))
    monkeypatch.setattr(fidelity, "sample", lambda pipe, prompts, *_: seen.append(len(prompts)) or empty)
    fidelity.drawn(SimpleNamespace(backend="onnxruntime", diffusers=lambda: None), comparison, "")
    assert seen == [1, 1, 1]


def test_disk_counts_the_engines_where_they_are_what_runs(
    flux: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.trt import plan

    artifact = Artifact.open(flux.root)
    found = disk(artifact, "int4-rtn", "onnxruntime")
    assert found["plans"] == {} and found["total_bytes"] == sum(found["components"].values()) > 0
    (tmp_path / "x.plan").write_bytes(b"1234567")
    monkeypatch.setattr(plan, "find", lambda *_: SimpleNamespace(path=tmp_path / "x.plan"))
    engine = disk(artifact, "int4-rtn", "tensorrt")
    assert set(engine["plans"]) == set(engine["components"]) and set(engine["plans"].values()) == {7}
    assert engine["total_bytes"] == found["total_bytes"] + 7 * len(engine["plans"])
