"""A pipeline whose weights stay in their files draws what one in memory draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from artifact.sampling import initial_noise, sample
from export import offload
from export.calibrate import calibrate
from export.components import latent_rule
from export.pipeline import denoiser_of, load_pipeline
from export.source import open_source


@pytest.mark.parametrize("model", ["shapes-dit", "shapes-unet"])
def test_images_and_samples_are_the_same_with_no_weight_in_memory(model: str, tmp_path: Path) -> None:
    source = open_source(model)
    generation = source.generation | {"num_inference_steps": 2}
    noise = initial_noise(latent_rule(source), [0, 1], generation["height"], generation["width"])
    prompts = ["large red circle on white", "small blue square on black"]
    whole, left = load_pipeline(source), load_pipeline(source, max_bytes=1 << 20)
    assert not any(p.is_meta for p in denoiser_of(whole).parameters())
    assert all(p.is_meta for p in denoiser_of(left).parameters())
    a, b = sample(whole, prompts, noise, generation), sample(left, prompts, noise, generation)
    assert np.array_equal(a.latents, b.latents) and np.array_equal(a.images, b.images)
    assert all(p.is_meta for p in denoiser_of(left).parameters())  # and dropped again

    linear = next(n for n, m in denoiser_of(whole).named_modules() if isinstance(m, torch.nn.Linear) and "to_q" in n)
    drawn = [calibrate(source, pipe, {"x": linear}, prompts, [0, 1], 64, 0, tmp_path)["x"] for pipe in (whole, left)]
    assert np.array_equal(*drawn)


def test_the_largest_modules_are_left_out_first_and_decoders_never() -> None:
    source = open_source("shapes-dit")
    sizes = {m: 4 * sum(int(np.prod(w.shape)) for w in source.weights(m).values())
             for m in ("transformer", "text_encoder_2", "text_encoder", "vae")}  # fmt: skip

    def on_meta(most: int) -> set[str]:
        found = load_pipeline(source, max_bytes=most).components
        return {m for m in sizes if any(p.is_meta for p in found[m].parameters())}

    assert on_meta(sum(sizes.values())) == set()
    assert on_meta(sum(sizes.values()) - 1) == {"transformer"}
    assert on_meta(0) == {"transformer", "text_encoder_2", "text_encoder"}


def test_memory_of_a_large_part_goes_back_to_the_system_when_it_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, trimmed = load_pipeline(open_source("shapes-unet"), max_bytes=1 << 20), []
    monkeypatch.setattr(offload, "trim", lambda: trimmed.append(1))
    part = next(m for m in pipe.unet.modules() if isinstance(m, torch.nn.Linear))
    part(torch.ones(1, part.in_features))
    assert not trimmed and part.weight.is_meta
    part._hf_hook._trims = True
    part(torch.ones(1, part.in_features))
    assert trimmed == [1]

    monkeypatch.setattr(offload, "TRIMMED_BYTES", 0)
    hooks = [m._hf_hook for m in load_pipeline(open_source("shapes-unet"), max_bytes=1 << 20).unet.modules()
             if hasattr(m, "_hf_hook")]  # fmt: skip
    assert any(h._trims for h in hooks) and all(h._trims == h.place_submodules for h in hooks)
