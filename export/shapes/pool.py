"""A ring of encoded training pictures, a part of it redrawn now and then: keeps the autoencoder out of the loop."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL

from . import data, reading, vocabulary
from .vae import to_tensor


@dataclass(frozen=True)
class Batch:
    """Scaled latents [B, C, h, w]; per tokenizer the ids [B, L] and the tokens' owners [B, L]; labels [B, LABELS]."""

    latents: torch.Tensor
    ids: list[torch.Tensor]
    owners: list[torch.Tensor]
    labels: torch.Tensor
    with_caption: torch.Tensor  # bool [B]: False where the caption was dropped


class Pool:
    """`starts[i]` is the number of tokens that tokenizer i puts before the first word."""

    CHUNK = 64

    def __init__(self, vae: AutoencoderKL, tokenizers: list, starts: list[int], size: int, seed: int):
        self.vae, self.tokenizers, self.starts, self.size = vae, tokenizers, starts, size
        self.rng, self.at = random.Random(seed), 0
        self.empty = [vocabulary.token_ids(t, [""]) for t in tokenizers]
        self.parts: dict[str, torch.Tensor] = {}
        self.refresh(size)

    @torch.no_grad()
    def refresh(self, count: int) -> None:
        """Replaces the oldest `count` pictures by new ones."""
        for _ in range(count // self.CHUNK):
            for name, part in self._draw().items():
                ring = self.parts.setdefault(name, part.new_empty((self.size, *part.shape[1:])))
                ring[self.at : self.at + self.CHUNK] = part
            self.at = (self.at + self.CHUNK) % self.size

    def _draw(self) -> dict[str, torch.Tensor]:
        scenes = data.training_scenes(self.rng, self.CHUNK)
        pictures = to_tensor(np.stack([data.draw(s, self.rng) for s in scenes]))
        latents = self.vae.encode(pictures).latent_dist.mean - (self.vae.config.shift_factor or 0.0)
        parts = {"latents": latents * self.vae.config.scaling_factor}
        parts["labels"] = torch.tensor([reading.labels(s) for s in scenes])
        for i, (tokenizer, start) in enumerate(zip(self.tokenizers, self.starts, strict=True)):
            parts[f"ids{i}"] = vocabulary.token_ids(tokenizer, [s.caption for s in scenes])
            parts[f"owners{i}"] = torch.tensor([reading.owners(s, start) for s in scenes])
        return parts

    def batch(self, count: int, drop: float) -> Batch:
        """Random pictures; a share `drop` of them with the empty caption, for classifier-free guidance."""
        chosen = torch.randint(self.size, (count,))
        gone = (torch.rand(count) < drop)[:, None]
        ids = [torch.where(gone, e, self.parts[f"ids{i}"][chosen]) for i, e in enumerate(self.empty)]
        owners = [self.parts[f"owners{i}"][chosen] for i in range(len(ids))]
        return Batch(self.parts["latents"][chosen], ids, owners, self.parts["labels"][chosen], ~gone[:, 0])
