"""Positions of patches as PatchEmbed adds them (PixArt, SANA at 4K), for every size and in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch


def float32_positions(embed: Any) -> None:
    """Let a diffusers PatchEmbed with sinusoidal positions compute them from the size of its input, in place.

    It holds a table for its training size and computes any other in float64, which TensorRT does not have; torch
    decides which at export. Here every size is computed, the frequencies rounded once from float64. An embedding
    without positions (SANA's) stays as it is.
    """
    if embed.pos_embed is None:
        return
    quarter = embed.pos_embed.shape[-1] // 4
    frequencies = 1.0 / 10000.0 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    embed.register_buffer("frequencies", frequencies.float(), persistent=False)
    embed.forward = partial(_embed, embed)


def _embed(embed: Any, latent: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] → [B, tokens, D]."""
    x = embed.proj(latent)
    rows, columns = x.shape[-2:]
    by_row, by_column = _sinusoids(embed, rows), _sinusoids(embed, columns)
    table = torch.cat(
        [by_column[None].expand(rows, -1, -1), by_row[:, None].expand(-1, columns, -1)], dim=-1
    )  # columns first, as they were trained
    x = x.flatten(2).transpose(1, 2)
    return (x + table.reshape(1, rows * columns, -1)).to(x.dtype)


def _sinusoids(embed: Any, size: int) -> torch.Tensor:
    """float32 [size, D/2]: sines, then cosines, of positions stretched to the training size."""
    positions = torch.arange(size, dtype=torch.float32) / (size / embed.base_size) / embed.interpolation_scale
    angles = positions[:, None] * embed.frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
