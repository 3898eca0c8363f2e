"""What an artifact keeps of the 16-bit pipeline, so that it is judged where that pipeline does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.pictures import Pictures, any_pictures, read_pictures

PICTURES = 16  # image pairs kept per preset for the report
PROMPTS, TENSORS = "references/prompts.json", "references/tensors.safetensors"
BESIDE = "references/pictures"  # 0000.png, 0000.mask.png and so on, where the pipeline draws from pictures


@dataclass(frozen=True)
class References:
    """What the 16-bit pipeline made of the prompts at build time, and what it started from.

    `noise` float32 [P, ...]; `latents` float16 [P, steps, ...]; `images` uint8 [P, H, W, 3];
    `pictures` those that it drew from, None where it takes none.
    """

    prompts: list[str]
    seeds: list[int]
    generation: dict[str, Any]
    noise: np.ndarray
    latents: np.ndarray
    images: np.ndarray
    pictures: Pictures | None = None

    @classmethod
    def read(cls, artifact: Artifact) -> References:
        """Raises UserError where the artifact was built without references."""
        from safetensors.numpy import load_file

        if not artifact.manifest.get("references"):
            raise UserError(f"{artifact.root} holds no references to compare with: build it again with references.")
        text = json.loads(artifact.path(PROMPTS).read_text(encoding="utf-8"))
        tensors = load_file(artifact.path(TENSORS))
        return cls(
            text["prompts"], text["seeds"], text["generation"], tensors["noise"], tensors["latents"], tensors["images"],
            _pictures(artifact, len(text["prompts"]), text["generation"]),
        )  # fmt: skip

    def pictured(self) -> list[int]:
        """Indices of the prompts whose images the report shows: all, or PICTURES of them evenly spread."""
        return sorted({int(i) for i in np.linspace(0, len(self.prompts) - 1, min(PICTURES, len(self.prompts)))})


@dataclass(frozen=True)
class Timed:
    """What is drawn where only time and memory count: the first reference, or any prompt where there is none.

    `pictures` are grey ones where no reference has some, None where the pipeline takes none.
    """

    prompt: str
    pictures: Pictures | None

    @property
    def given(self) -> dict[str, Any]:
        """Keyword arguments of the EnginePipeline's call."""
        if self.pictures is None:
            return {}
        rule, arguments = self.pictures.rule, self.pictures.arguments()
        return {"image": arguments[rule.image][0], "mask": arguments[rule.mask][0] if rule.mask else None}

    @classmethod
    def of(cls, artifact: Artifact) -> Timed:
        prompts = (artifact.manifest.get("references") or {}).get("prompts")
        generation, rule = artifact.manifest["generation"], artifact.pictures
        pictures = None
        if prompts:
            pictures = _pictures(artifact, 1, generation)
        elif rule is not None:
            pictures = any_pictures(rule, 1, generation["height"], generation["width"])
        return cls(prompts[0] if prompts else "a photograph", pictures)


def _pictures(artifact: Artifact, count: int, generation: dict[str, Any]) -> Pictures | None:
    """The pictures of the first `count` references."""
    if artifact.pictures is None:
        return None
    size = generation["height"], generation["width"]
    return read_pictures(artifact.path(BESIDE), artifact.pictures, count, *size)
