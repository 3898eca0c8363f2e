"""References: what is stored, and that a resumed run stores the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from artifact.sampling import initial_noise, sample
from artifact.store import Store
from export import references
from export.components import latent_rule
from export.examples import Examples
from export.pipeline import load_pipeline
from export.references import draw_references, kept, write_references

PROMPTS = ["a red circle", "a blue square", "a green cross on a red square"]
SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def pipe(flux):
    return load_pipeline(flux)


@pytest.fixture
def two_at_a_time(monkeypatch):
    monkeypatch.setattr(references, "MOST_PER_CALL", 2)


def make(source, pipe, prompts, seeds, out, store):
    """Draw and write; the names of the files."""
    return write_references(draw_references(source, pipe, prompts, seeds, store), out)


def all_bytes(root) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_what_is_stored_is_what_the_pipeline_draws(flux, pipe, tmp_path):
    names = make(flux, lambda: pipe, PROMPTS, SEEDS, tmp_path / "out", Store(tmp_path / "store"))
    assert sorted(names) == sorted(all_bytes(tmp_path / "out"))
    tensors = load_file(tmp_path / "out/references/tensors.safetensors")
    noise = initial_noise(latent_rule(flux), SEEDS, 32, 32)
    drawn = sample(pipe, PROMPTS, noise, flux.generation)
    assert np.array_equal(tensors["noise"], noise) and tensors["noise"].dtype == np.float32
    assert np.array_equal(tensors["latents"], drawn.latents.astype(np.float16))
    assert tensors["latents"].shape == (3, 3, 64, 16)
    assert np.array_equal(tensors["images"], drawn.images) and drawn.images.shape == (3, 32, 32, 3)
    for number in range(3):
        image = np.asarray(Image.open(tmp_path / f"out/references/images/{number:04}.png"))
        assert np.array_equal(image, drawn.images[number])
    record = json.loads((tmp_path / "out/references/prompts.json").read_text())
    assert record["prompts"] == PROMPTS and record["seeds"] == SEEDS
    assert record["generation"] == flux.generation and record["latents"] == latent_rule(flux).to_json()


def test_a_killed_run_resumes_at_its_batch_and_writes_the_same_bytes(flux, pipe, tmp_path, two_at_a_time, monkeypatch):
    make(flux, lambda: pipe, PROMPTS, SEEDS, tmp_path / "whole", Store(tmp_path / "a"))
    calls = []

    def killed_at_the_second(*arguments):
        calls.append(arguments[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(references, "sample", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make(flux, lambda: pipe, PROMPTS, SEEDS, tmp_path / "resumed", Store(tmp_path / "b"))
    make(flux, lambda: pipe, PROMPTS, SEEDS, tmp_path / "resumed", Store(tmp_path / "b"))
    assert calls == [PROMPTS[:2], PROMPTS[2:], PROMPTS[2:]]
    assert all_bytes(tmp_path / "whole") == all_bytes(tmp_path / "resumed")


def test_another_number_of_steps_is_drawn_anew(flux, pipe, tmp_path):
    store = Store(tmp_path / "store")
    make(flux, lambda: pipe, PROMPTS[:1], SEEDS[:1], tmp_path / "three", store)
    fewer = replace(flux, generation={**flux.generation, "num_inference_steps": 2})
    make(fewer, lambda: pipe, PROMPTS[:1], SEEDS[:1], tmp_path / "two", store)
    assert load_file(tmp_path / "two/references/tensors.safetensors")["latents"].shape[1] == 2


def test_the_pipeline_is_not_loaded_where_every_image_is_kept(flux, pipe, tmp_path, two_at_a_time):
    store = Store(tmp_path / "store")
    make(flux, lambda: pipe, PROMPTS[:2], SEEDS[:2], tmp_path / "out", store)
    assert [kept(flux, Examples(PROMPTS[:n]), SEEDS[:n], store) for n in (2, 3)] == [2, 2]
    make(flux, lambda: pytest.fail("loaded"), PROMPTS[:2], SEEDS[:2], tmp_path / "again", store)
    assert all_bytes(tmp_path / "again") == all_bytes(tmp_path / "out")
