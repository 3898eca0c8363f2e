"""Latents to pictures: unpacked, scaled, through the decoder, rounded to bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from artifact.sampling import LatentRule
from engines.deploy.device.runner import Runner


def decode(about: Mapping[str, Any], decoder: Runner, latents: np.ndarray) -> np.ndarray:
    """Latents [1, ...] to images uint8 [1, H, W, 3]."""
    if about["latents"]["packed"]:
        latents = _unpacked(about, latents)
    scale, shift = (np.array(about["decode"][k], np.float32).reshape(1, -1, 1, 1) for k in ("scale", "shift"))
    latents = latents * scale + shift
    name, shape = next(iter(about["components"][about["decoder"]]["inputs"].items()))
    frames = len(shape) == 5  # Qwen-Image's decoder has an axis of frames, of which an image is one
    image = next(iter(decoder.run({name: latents[:, :, None] if frames else latents}).values()))
    if frames:
        image = image[:, :, 0]
    return (np.clip(image / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def _unpacked(about: Mapping[str, Any], latents: np.ndarray) -> np.ndarray:
    """[1, (h/2)(w/2), 4C] to [1, C, h, w]."""
    rule = LatentRule(**{**about["latents"], "packed": False})
    channels, h, w = rule.shape(about["generation"]["height"], about["generation"]["width"])
    patches = latents.reshape(1, h // 2, w // 2, channels, 2, 2)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(1, channels, h, w)
