"""The latency part of a result, from the milliseconds that were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engines.validation import drift, timing


def latency(
    images_ms: Sequence[float],
    calls_ms: Mapping[str, Sequence[float]],
    denoiser: str,
    steps: int,
) -> dict[str, Any]:
    """Rows as `timing.summary` gives them: `image` from prompt to picture, `step`, and each of `components`.

    `images_ms` one for each image; `calls_ms` every call of a component, in order; `denoiser` names the one whose
    calls make `steps` steps an image. `steps_per_second` is that of the median step; `narrow`: the intervals of image
    and step are under 5 % of their medians; `note`: the drift over the run, or None.
    """
    count = len(images_ms)
    per_image = {name: np.reshape(calls, (count, -1)) for name, calls in calls_ms.items() if len(calls)}
    rows = {name: timing.summary(calls) for name, calls in per_image.items()}
    image = timing.summary(np.reshape(images_ms, (count, 1)))
    step = timing.summary(step_table(per_image[denoiser], steps))
    intervals = [row["interval"] for row in (image, step)]
    return {
        "images": count,
        "seconds": float(np.sum(images_ms)) / 1e3,
        "image": image,
        "step": step,
        "components": rows,
        "steps_per_second": 1e3 / step["p50_ms"] if step["p50_ms"] else None,
        "narrow": all(i is not None and i["relative"] < timing.NARROW for i in intervals),
        "note": drift.sentence(drift.drift(images_ms)),
    }


def step_table(calls: np.ndarray, steps: int) -> np.ndarray:
    """Milliseconds [images, steps] of all denoiser calls of a step, from those of every call [images, calls].

    A step is two calls under classifier-free guidance in separate ones. Where the calls do not divide into steps, as a
    scheduler of higher order makes them, every step is an image's mean: [images, 1].
    """
    images, count = calls.shape
    if count % steps:
        return calls.sum(axis=1, keepdims=True) / steps
    return calls.reshape(images, steps, count // steps).sum(axis=2)


def enough(images_ms: Sequence[float], denoiser_ms: Sequence[float], steps: int) -> bool:
    """Whether the medians of image and step are both known well enough to stop."""
    table = step_table(np.reshape(denoiser_ms, (len(images_ms), -1)), steps)
    return timing.narrow(images_ms) and timing.narrow(table.mean(axis=1))
