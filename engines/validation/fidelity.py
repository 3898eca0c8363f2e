"""How close a preset's images and latents are to those of the other side, drawn from the same noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from artifact.sampling import Progress, Sampled, sample
from engines import evaluate
from engines.references import References
from engines.validation.comparison import Comparison

MOST_PER_CALL = 25  # images; fewer of large ones, and one by one where an engine was built for one


def drawn(pipe: Any, comparison: Comparison, what: str, progress: Progress | None = None) -> Sampled:
    """What a loaded `EnginePipeline` makes of the comparison's prompts and noise. `what` is told to `progress`."""
    pipeline, count = pipe.diffusers(), len(comparison.prompts)
    call = comparison.generation
    batch = max(1, min(MOST_PER_CALL, evaluate.PIXELS // (call["height"] * call["width"])))
    if pipe.backend == "tensorrt":
        batch = 1
    parts = []
    for first in range(0, count, batch):
        part = slice(first, first + batch)
        if progress:
            progress(first, count, what)
        pictures = None if comparison.pictures is None else comparison.pictures[part]
        parts.append(sample(pipeline, comparison.prompts[part], comparison.noise[part], call, None, pictures))
    images, latents = (np.concatenate([getattr(p, k) for p in parts]) for k in ("images", "latents"))
    return Sampled(images, latents)


def fidelity(own: Sampled, comparison: Comparison, other: Sampled | None) -> dict[str, Any]:
    """PSNR (dB), SSIM and the latents' cosine per step as report.json has them, and `compared`: with what.

    `other` is what the other side drew; None where the comparison holds stored references.
    """
    found = evaluate.fidelity(own, _references(comparison, other))
    return {"compared": comparison.said, "prompts": len(comparison.prompts), **found}


def _references(comparison: Comparison, other: Sampled | None) -> References:
    if comparison.references is not None:
        return comparison.references
    assert other is not None
    seeds = list(range(len(comparison.prompts)))
    return References(comparison.prompts, seeds, comparison.generation, comparison.noise, other.latents, other.images)
