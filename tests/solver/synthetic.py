"""Small layers with what makes real ones hard: a decaying spectrum and channels of outliers."""

from __future__ import annotations

import numpy as np

Layer = tuple[np.ndarray, np.ndarray, np.ndarray]


def layer(outputs: int, channels: int, tokens: int = 96, seed: int = 0, dtype: type = np.float16) -> Layer:
    """weight [N, K], bias [N], samples [S, K]."""
    random = np.random.default_rng(seed)
    directions = min(48, outputs, channels)
    spectrum = np.arange(1, directions + 1) ** -0.7
    weight = (random.standard_normal((outputs, directions)) * spectrum) @ random.standard_normal((directions, channels))
    weight = weight / weight.std() + 0.5 * random.standard_normal((outputs, channels))
    scale = np.exp(0.5 * random.standard_normal(channels))
    scale[random.permutation(channels)[: max(2, channels // 64)]] *= 15
    samples = random.standard_normal((tokens, channels)) * scale
    bias = 0.1 * random.standard_normal(outputs)
    return (weight / channels**0.5).astype(dtype), bias.astype(dtype), samples.astype(dtype)
