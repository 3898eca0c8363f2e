"""The bundle's engines against what the 16-bit pipeline drew of the same prompts and noise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from artifact.errors import UserError
from artifact.sampling import Progress
from engines.deploy.device.bundle import Bundle
from engines.deploy.device.drawing import Call, draw
from engines.deploy.device.runner import Opener
from engines.metrics import latent_cosine, mean_squared_error, psnr_db


def validate(bundle: Bundle, open_: Opener, progress: Progress) -> dict[str, Any]:
    """Draw the bundle's reference prompts and compare.

    Returns {"prompts", "psnr_db": {"mean", "min"}, "latent_cosine": {"mean of the last step", "min of a step"},
    "p50_ms": {component: per call}, "image_ms": sum of the components' medians times their calls}. Raises UserError
    for a bundle without references.
    """
    about = bundle.manifest.get("references")
    if not about:
        raise UserError("This bundle holds no references: build the artifact with --references and bundle it again.")
    said = json.loads(bundle.path("references/prompts.json").read_text(encoding="utf-8"))
    latents = np.load(bundle.path("references/latents.npy"), allow_pickle=False)
    images = np.stack([_image(bundle, i) for i in range(len(said["prompts"]))])
    drawn = draw(bundle, open_, said["prompts"], said["seeds"], Call(), progress)
    psnr = psnr_db(mean_squared_error(drawn.images, images))
    cosine = latent_cosine(drawn.latents, latents)
    p50 = {name: float(np.median(times)) for name, times in drawn.latencies_ms.items()}
    calls = {name: len(times) for name, times in drawn.latencies_ms.items()}
    # A negative prompt is encoded once for all: an image of its own would encode it again.
    each = {name: max(1, round(n / len(said["prompts"]))) for name, n in calls.items()}
    return {
        "prompts": len(said["prompts"]),
        "psnr_db": {"mean": float(psnr.mean()), "min": float(psnr.min())},
        "latent_cosine": {"last": float(cosine[-1]), "min": float(cosine.min())},
        "p50_ms": p50,
        "image_ms": sum(p50[name] * each[name] for name in p50),
    }


def _image(bundle: Bundle, number: int) -> np.ndarray:
    with Image.open(bundle.path(f"references/images/{number:04}.png")) as image:
        return np.asarray(image.convert("RGB"))
