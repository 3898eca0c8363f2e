"""Prompts to images: text encoders, denoiser, decoder, each in memory only while it works.

All prompts go through one stage before the next stage is loaded, so that the device holds the largest component and
not their sum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from artifact.errors import UserError
from artifact.sampling import LatentRule, Progress, initial_noise
from engines.deploy.device.bundle import Bundle

Arrays = dict[str, np.ndarray]


class Runner(Protocol):
    """What a component is run with."""

    latencies_ms: list[float]

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays: ...


Opener = Callable[[str], AbstractContextManager[Runner]]


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
    texts = list(dict.fromkeys([*prompts, *([] if negative is None else [negative])]))
    times: dict[str, list[float]] = {}
    conditions = _encode(bundle, open_, texts, times, progress)
    if negative == "" and about["zeros_for_no_negative"] and call.negative_prompt is None:
        conditions[""] = {k: np.zeros_like(v) for k, v in conditions[""].items()}
    size = about["generation"]["height"], about["generation"]["width"]
    noise = initial_noise(LatentRule(**about["latents"]), list(seeds), *size)
    latents = []
    with open_(about["denoiser"]) as denoiser:
        for i, prompt in enumerate(prompts):
            sides = [conditions[prompt]] if negative is None else [conditions[negative], conditions[prompt]]
            latents.append(_denoise(about, denoiser, table, noise[i : i + 1], sides, scale, _within(progress, i)))
        times[about["denoiser"]] = denoiser.latencies_ms
    images = []
    with open_(about["decoder"]) as decoder:
        for i, steps in enumerate(latents):
            images.append(_decode(about, decoder, steps[-1]))
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


def _encode(
    bundle: Bundle, open_: Opener, texts: Sequence[str], times: dict[str, list[float]], progress: Progress
) -> dict[str, Arrays]:
    """The denoiser's conditions [1, ...] of every text."""
    from tokenizers import Tokenizer

    wanted: dict[str, list[list[str]]] = bundle.manifest["conditions"]
    tokenizers: dict[str, str] = bundle.manifest["tokenizers"]
    encoded: dict[str, dict[str, Arrays]] = {text: {} for text in texts}
    for name, file in tokenizers.items():
        tokenizer = Tokenizer.from_file(str(bundle.path(file)))
        with open_(name) as encoder:
            for i, text in enumerate(texts):
                feeds = {"input_ids": np.array([tokenizer.encode(text).ids], np.int64)}
                if "attention_mask" in bundle.manifest["components"][name]["inputs"]:
                    # These pipelines give no mask: the model sees the padding, as it did in training.
                    feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
                encoded[text][name] = encoder.run(feeds)
                progress(i + 1, len(texts), f"encoding ({name})")
            times[name] = encoder.latencies_ms
    return {
        text: {k: np.concatenate([found[n][output] for n, output in parts], axis=-1) for k, parts in wanted.items()}
        for text, found in encoded.items()
    }


def _denoise(
    about: Mapping[str, Any],
    denoiser: Runner,
    table: Mapping[str, Any],
    noise: np.ndarray,
    sides: list[Arrays],
    scale: float,
    progress: Progress,
) -> list[np.ndarray]:
    """Latents [1, ...] after every step; `sides`: the conditions alone, or the negative ones before them."""
    x = noise * np.float32(table["noise"])
    fixed = _fixed(about, scale)
    kept = []
    for i, row in enumerate(table["rows"]):
        timestep, into, p, q, r, s, u = np.array(row, np.float32)
        m = _predict(about, denoiser, x * into, timestep, fixed, sides, scale)
        x0 = p * x + q * m
        if table["clip"] is not None:
            x0 = np.clip(x0, -table["clip"], table["clip"])
        x = r * x0 + s * x + u * m
        kept.append(x)
        progress(i + 1, len(table["rows"]), "denoising")
    return kept


def _predict(
    about: Mapping[str, Any],
    denoiser: Runner,
    x: np.ndarray,
    timestep: np.float32,
    fixed: Arrays,
    sides: list[Arrays],
    scale: float,
) -> np.ndarray:
    """The denoiser's prediction; of two sides, by classifier-free guidance (Ho and Salimans 2207.12598)."""
    inputs = about["components"][about["denoiser"]]["inputs"]
    latents = "hidden_states" if "hidden_states" in inputs else "sample"

    def ask(conditions: Arrays, count: int) -> np.ndarray:
        repeated = {k: np.repeat(v, count, axis=0) if k in ("time_ids", "guidance") else v for k, v in fixed.items()}
        feeds = {latents: np.repeat(x, count, axis=0), "timestep": np.full(count, timestep), **repeated, **conditions}
        return next(iter(denoiser.run(feeds).values()))

    if len(sides) == 1:
        return ask(sides[0], 1)
    if about["joined_guidance"]:
        negative, positive = np.split(ask({k: np.concatenate([s[k] for s in sides]) for k in sides[0]}, 2), 2)
    else:
        negative, positive = (ask(side, 1) for side in sides)
    return negative + np.float32(scale) * (positive - negative)


def _fixed(about: Mapping[str, Any], scale: float) -> Arrays:
    """The denoiser's inputs that stay the same through the loop: positions, sizes, embedded guidance."""
    inputs = about["components"][about["denoiser"]]["inputs"]
    height, width = about["generation"]["height"], about["generation"]["width"]
    made: Arrays = {}
    if "img_ids" in inputs:
        side = 2 * about["latents"]["scale"]
        rows, columns = np.mgrid[: height // side, : width // side]
        made["img_ids"] = np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3).astype(np.float32)
    if "txt_ids" in inputs:
        made["txt_ids"] = np.zeros(inputs["txt_ids"], np.float32)
    if "time_ids" in inputs:  # SDXL: original size, crop, target size
        made["time_ids"] = np.array([[height, width, 0, 0, height, width]], np.float32)
    if "guidance" in inputs:
        made["guidance"] = np.array([scale], np.float32)
    return made


def _decode(about: Mapping[str, Any], decoder: Runner, latents: np.ndarray) -> np.ndarray:
    """Latents [1, ...] to images uint8 [1, H, W, 3]."""
    if about["latents"]["packed"]:
        latents = _unpacked(about, latents)
    scale, shift = (np.array(about["decode"][k], np.float32).reshape(1, -1, 1, 1) for k in ("scale", "shift"))
    name = next(iter(about["components"][about["decoder"]]["inputs"]))
    image = next(iter(decoder.run({name: latents * scale + shift}).values()))
    return (np.clip(image / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def _unpacked(about: Mapping[str, Any], latents: np.ndarray) -> np.ndarray:
    """FLUX's [1, (h/2)(w/2), 4C] to [1, C, h, w]."""
    rule = LatentRule(**{**about["latents"], "packed": False})
    channels, h, w = rule.shape(about["generation"]["height"], about["generation"]["width"])
    patches = latents.reshape(1, h // 2, w // 2, channels, 2, 2)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(1, channels, h, w)


def _within(progress: Progress, prompt: int) -> Progress:
    return lambda done, total, what: progress(done, total, f"{what} image {prompt + 1}")
