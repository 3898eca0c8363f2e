"""How many images one call of the pipeline draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from artifact.sampling import LatentRule, Progress

TOKENS = 2048  # image tokens in one call: 25 or 32 tiny images, one of FLUX's size


def batch_size(rule: LatentRule, generation: dict[str, Any], most: int) -> int:
    """Images per call, at most `most`. Part of what makes a result: sums round differently in another batch."""
    shape = rule.shape(generation["height"], generation["width"])
    tokens = shape[0] if rule.packed else shape[-2] * shape[-1] // 4
    return max(1, min(most, TOKENS // max(1, tokens)))


def batches(count: int, size: int) -> Iterator[slice]:
    """0..count in slices of `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def within(progress: Progress | None, part: slice, total: int, what: str) -> Progress | None:
    """For `sample`: a batch's steps reported as images done of all."""
    if progress is None:
        return None
    return lambda done, steps, _: progress(part.start + (part.stop - part.start) * done // steps, total, what)
