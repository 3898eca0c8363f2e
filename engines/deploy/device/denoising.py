"""Noise to latents: the step table carried out, the denoiser asked once or twice a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from artifact.positions import qwen_image_positions
from artifact.sampling import Progress
from engines.deploy.device.runner import Arrays, Runner


def denoise(
    about: Mapping[str, Any],
    denoiser: Runner,
    table: Mapping[str, Any],
    noise: np.ndarray,
    sides: Sequence[Arrays],
    scale: float,
    progress: Progress,
) -> list[np.ndarray]:
    """Latents [1, ...] after every step.

    `table`: {"clip", "noise", "rows"} of steps.json; `sides`: the prompt's conditions alone, or the negative ones
    before them; `scale` of the guidance.
    """
    x = noise * np.float32(table["noise"])
    calls = _calls(about, sides, scale)
    before: np.ndarray | np.float32 = np.float32(0)
    kept = []
    for i, row in enumerate(table["rows"]):
        timestep, into, p, q, r, s, u, v = np.array(row, np.float32)
        m = _predict(about, denoiser, x * into, timestep, calls, scale)
        x0 = p * x + q * m
        if table["clip"] is not None:
            x0 = np.clip(x0, -table["clip"], table["clip"])
        x = r * x0 + s * x + u * m + v * before
        before = x0
        kept.append(x)
        progress(i + 1, len(table["rows"]), "denoising")
    return kept


def _calls(about: Mapping[str, Any], sides: Sequence[Arrays], scale: float) -> list[Arrays]:
    """What stays the same through the loop of each call that a step takes: one, or one for each side."""
    if len(sides) > 1 and about["joined_guidance"]:
        sides = [{k: np.concatenate([side[k] for side in sides]) for k in sides[0]}]
    return [{**side, **_fixed(about, scale, *side["encoder_hidden_states"].shape[:2])} for side in sides]


def _fixed(about: Mapping[str, Any], scale: float, count: int, words: int) -> Arrays:
    """The denoiser's inputs that neither latents nor text give: positions, sizes, embedded guidance."""
    inputs = about["components"][about["denoiser"]]["inputs"]
    height, width = about["generation"]["height"], about["generation"]["width"]
    made: Arrays = {}
    if "img_ids" in inputs:
        side = 2 * about["latents"]["scale"]
        made["img_ids"], made["txt_ids"] = _positions(height // side, width // side, words, about["centred_positions"])
    if "time_ids" in inputs:  # SDXL: original size, crop, target size
        made["time_ids"] = np.array([[height, width, 0, 0, height, width]] * count, np.float32)
    if "guidance" in inputs:
        made["guidance"] = np.full(count, scale, np.float32)
    return made


def _positions(rows: int, columns: int, words: int, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions [tokens, 3] of the image and [words, 3] of the text: Qwen-Image's, or FLUX's, whose text has none."""
    if centred:
        return qwen_image_positions(rows, columns, words)
    row, column = np.mgrid[:rows, :columns]
    image = np.stack([np.zeros_like(row), row, column], axis=-1).reshape(-1, 3)
    return image.astype(np.float32), np.zeros((words, 3), np.float32)


def _predict(
    about: Mapping[str, Any],
    denoiser: Runner,
    x: np.ndarray,
    timestep: np.float32,
    calls: Sequence[Arrays],
    scale: float,
) -> np.ndarray:
    """The denoiser's prediction; of two sides, by classifier-free guidance (Ho and Salimans 2207.12598)."""
    inputs = about["components"][about["denoiser"]]["inputs"]
    latents = "hidden_states" if "hidden_states" in inputs else "sample"
    found = []
    for call in calls:
        count = len(call["encoder_hidden_states"])
        feeds = {**call, latents: np.repeat(x, count, axis=0), "timestep": np.full(count, timestep)}
        # A denoiser that also predicts a variance gives it as a second half of the channels.
        found.append(next(iter(denoiser.run(feeds).values()))[:, : x.shape[1]])
    m = np.concatenate(found)
    if len(m) == 1:
        return m
    negative, positive = m[:1], m[1:]
    guided = negative + np.float32(scale) * (positive - negative)
    if about["rescaled_guidance"]:
        wanted, now = (np.linalg.norm(a, axis=-1, keepdims=True) for a in (positive, guided))
        guided = guided * (wanted / now)
    return guided
