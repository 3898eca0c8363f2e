"""Random weights with what makes real ones hard to quantise, drawn fast and in little memory.

A matrix of K inputs is drawn block by block: half of its energy lies in 64 directions of singular values i^-0.7, half
is noise; channel scales of the input are log-normal, one channel in a hundred is 4 to 10 times larger. Its entries have
variance 1/K, so that what goes through many layers stays finite, in float16 too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch

DIRECTIONS = 64
SPECTRUM = -0.7
SHARE = 0.5  # of the energy, in those directions
BLOCK = 1 << 18  # numbers at a time: a block and its noise stay in the cache
POOL = (1 << 23) + 4099  # numbers of noise, drawn once and read from random places; no multiple of any width

TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Weights:
    """The tensors of one seed. A tensor depends on the seed and its name alone, not on what was drawn before it."""

    def __init__(self, seed: int, dtype: str) -> None:
        self._seed, self._type = seed, TORCH_TYPES[dtype]
        self._pool = torch.randn(POOL, generator=self._generator("noise"))

    def blocks(self, name: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
        """The bytes of a tensor, one block after the other; a block is overwritten by the next.

        Matrices, convolutions [N, C, height, width] and embeddings as above; a vector is a bias (near 0) where its
        name says so, else the weight of a norm (near 1).
        """
        if len(shape) < 2:
            deviation, mean = (0.02, 0.0) if name.endswith("bias") else (0.05, 1.0)
            values = torch.randn(shape, generator=self._generator(name)) * deviation + mean
            yield _bytes(values.to(self._type))
        else:
            yield from self._matrix(name, shape)

    def _matrix(self, name: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
        generator = self._generator(name)
        outputs, inputs = shape[0], math.prod(shape[1:])
        rank = min(DIRECTIONS, outputs, inputs)
        spectrum = torch.arange(1, rank + 1).float() ** SPECTRUM
        spectrum *= (SHARE / spectrum.square().sum()).sqrt()
        right = torch.randn(rank, inputs, generator=generator) * spectrum[:, None]
        scales = channel_scales(shape[1], generator).repeat_interleave(inputs // shape[1]) / math.sqrt(inputs)
        rows = max(1, BLOCK // inputs)
        product, rounded = torch.empty(rows, inputs), torch.empty(rows, inputs, dtype=self._type)
        for start in range(0, outputs, rows):
            count = min(rows, outputs - start)
            noise, left = self._noise(count, inputs, generator), self._noise(count, rank, generator)
            part = torch.addmm(noise, left, right, beta=math.sqrt(1 - SHARE), out=product[:count])
            yield _bytes(rounded[:count].copy_(part.mul_(scales)))

    def _noise(self, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
        """Standard normal numbers [rows, columns] from a random place of the pool; not to be changed."""
        count = rows * columns
        if count > POOL:
            return torch.randn(rows, columns, generator=generator)
        at = int(torch.randint(0, POOL - count + 1, (), generator=generator))
        return self._pool[at : at + count].view(rows, columns)

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def channel_scales(channels: int, generator: torch.Generator) -> torch.Tensor:
    """float32 [channels] of mean square 1: log-normal, one in a hundred (at least one of 32) an outlier."""
    scales = (0.3 * torch.randn(channels, generator=generator)).exp()
    if channels >= 32:
        outliers = torch.randperm(channels, generator=generator)[: max(1, channels // 100)]
        scales[outliers] *= 4 + 6 * torch.rand(len(outliers), generator=generator)
    return scales / scales.square().mean().sqrt()


def _bytes(values: torch.Tensor) -> memoryview:
    """The tensor's memory; numpy has no bfloat16."""
    return memoryview(values.reshape(-1).view(torch.uint8).numpy()).cast("B")


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * np.dtype("float32" if dtype == "float32" else "float16").itemsize
