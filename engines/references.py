"""What an artifact keeps of the 16-bit pipeline, so that it is judged where that pipeline does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.manifest import Artifact

PICTURES = 16  # image pairs kept per preset for the report
PROMPTS, TENSORS = "references/prompts.json", "references/tensors.safetensors"


@dataclass(frozen=True)
class References:
    """What the 16-bit pipeline made of the prompts at build time, and what it started from.

    `noise` float32 [P, ...]; `latents` float16 [P, steps, ...]; `images` uint8 [P, H, W, 3].
    """

    prompts: list[str]
    seeds: list[int]
    generation: dict[str, Any]
    noise: np.ndarray
    latents: np.ndarray
    images: np.ndarray

    @classmethod
    def read(cls, artifact: Artifact) -> References:
        """Raises UserError where the artifact was built without references."""
        from safetensors.numpy import load_file

        if not artifact.manifest.get("references"):
            raise UserError(f"{artifact.root} holds no references to compare with: build it again with references.")
        text = json.loads(artifact.path(PROMPTS).read_text(encoding="utf-8"))
        tensors = load_file(artifact.path(TENSORS))
        return cls(
            text["prompts"], text["seeds"], text["generation"], tensors["noise"], tensors["latents"], tensors["images"]
        )

    def pictured(self) -> list[int]:
        """Indices of the prompts whose images the report shows: all, or PICTURES of them evenly spread."""
        return sorted({int(i) for i in np.linspace(0, len(self.prompts) - 1, min(PICTURES, len(self.prompts)))})
