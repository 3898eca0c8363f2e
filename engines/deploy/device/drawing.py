"""Prompts to images: text encoders, denoiser, decoder, each in memory only while it works.

All prompts go through one stage before the next stage is loaded, so that the device holds the largest component and
not their sum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.sampling import LatentRule, Progress, initial_noise
from engines.deploy.device.bundle import Bundle
from engines.deploy.device.decoding import decode
from engines.deploy.device.denoising import denoise
from engines.deploy.device.runner import Opener
from engines.deploy.device.text import Text, encode


@dataclass(frozen=True)
class Drawn:
    """`images` uint8 [P, H, W, 3]; `latents` float32 [P, steps, ...] after every step; milliseconds of every call."""

    images: np.ndarray
    latents: np.ndarray
    latencies_ms: dict[str, list[float]]


@dataclass(frozen=True)
class Call:
    """What the user may choose; None is as the model wants it."""

    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None


def draw(
    bundle: Bundle, open_: Opener, prompts: Sequence[str], seeds: Sequence[int], call: Call, progress: Progress
) -> Drawn:
    """Draw every prompt from `initial_noise` of its seed. Raises UserError for what the bundle cannot do."""
    about = bundle.manifest
    table = _table(bundle, about["generation"]["num_inference_steps"] if call.steps is None else call.steps)
    scale, negative = _guidance(about, call)
    others = [] if negative is None else [Text(negative, "negative")]
    texts = [*dict.fromkeys(map(Text, prompts)), *others]
    times: dict[str, list[float]] = {}
    conditions = encode(bundle, open_, texts, times, progress)
    if negative == "" and about["zeros_for_no_negative"] and call.negative_prompt is None:
        conditions[others[0]] = {k: np.zeros_like(v) for k, v in conditions[others[0]].items()}
    size = about["generation"]["height"], about["generation"]["width"]
    noise = initial_noise(LatentRule(**about["latents"]), list(seeds), *size)
    latents = []
    with open_(about["denoiser"]) as denoiser:
        for i, prompt in enumerate(prompts):
            sides = [conditions[text] for text in (*others, Text(prompt))]
            latents.append(denoise(about, denoiser, table, noise[i : i + 1], sides, scale, _within(progress, i)))
        times[about["denoiser"]] = denoiser.latencies_ms
    images = []
    with open_(about["decoder"]) as decoder:
        for i, steps in enumerate(latents):
            images.append(decode(about, decoder, steps[-1]))
            progress(i + 1, len(latents), "decoding")
        times[about["decoder"]] = decoder.latencies_ms
    return Drawn(np.concatenate(images), np.stack([np.concatenate(s) for s in latents]), times)


def _table(bundle: Bundle, steps: int) -> dict[str, Any]:
    tables = json.loads(bundle.path("steps.json").read_text(encoding="utf-8"))
    if str(steps) not in tables["steps"]:
        known = [int(n) for n in tables["steps"]]
        raise UserError(
            f"steps is {steps}, the bundle has tables for {min(known)} to {max(known)}: choose one of them."
        )
    return {"clip": tables["clip"], **tables["steps"][str(steps)]}


def _guidance(about: Mapping[str, Any], call: Call) -> tuple[float, str | None]:
    """The scale, and the negative prompt where the denoiser is asked twice (else None), as diffusers decides it."""
    wanted = about["generation"]
    scale = wanted.get(about["guidance"], 1.0) if call.guidance is None else call.guidance
    negative = wanted.get("negative_prompt") if call.negative_prompt is None else call.negative_prompt
    if about["embedded_guidance"]:
        if call.negative_prompt:
            raise UserError("This model's guidance is distilled into it: it takes no negative prompt.")
        return float(wanted.get("guidance_scale", 3.5) if call.guidance is None else scale), None
    if about["guidance"] == "true_cfg_scale" and negative is None and call.guidance is None:
        return 1.0, None
    return float(scale), (negative or "") if scale > 1 else None


def _within(progress: Progress, prompt: int) -> Progress:
    return lambda done, total, what: progress(done, total, f"{what} image {prompt + 1}")
