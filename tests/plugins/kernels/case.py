"""A layer and its input, drawn from a seed; and what a kernel's answer is worth."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from plugins.svdq_linear import reference
from plugins.svdq_linear.spec import Variant, group_count

Array = np.ndarray[Any, Any]
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Case:
    """Shapes, variant and tile. x has outliers, a row of zeros, and one each with a NaN, an infinity and tiny numbers.

    With `ties`, x̂ lies halfway between signed 4-bit codes instead: all of it, exactly, in either type.
    """

    tile: str
    dtype: str
    m: int
    n: int
    k: int
    rank: int = 0
    group_size: int = 64
    act_bits: int = 4
    act_signed: bool = True
    act_shift: float = 0.0
    activation: str = "none"
    seed: int = 0
    ties: bool = False

    @property
    def variant(self) -> Variant:
        return Variant(
            self.group_size, self.act_bits, self.act_signed, self.act_shift, self.activation, branch=self.rank > 0
        )

    @functools.cached_property
    def x(self) -> Array:
        random = np.random.default_rng(self.seed)
        if self.ties:
            scale = random.choice([9, 11, 13, 15], (self.m, 1)) * 2.0 ** random.integers(-8, 4, (self.m, 1))
            x = scale * (random.integers(-7, 7, (self.m, self.k)) + 0.5)
            x[:, :: self.group_size] = 7 * scale  # the group's peak: the scale is exact
            return x.astype(DTYPES[self.dtype])
        x = random.standard_normal((self.m, self.k)) * np.exp(random.standard_normal(self.k))
        with np.errstate(over="ignore"):
            if self.m > 4:
                x[1] = 0
                x[2, self.k // 2] = np.nan
                x[3, self.k // 3] = -np.inf
                x[4] *= 1e-7
            return x.astype(DTYPES[self.dtype])

    @functools.cached_property
    def constants(self) -> dict[str, Array]:
        """The op's inputs but x, by name."""
        random, dtype = np.random.default_rng(self.seed + 1), DTYPES[self.dtype]
        groups = group_count(self.k, self.group_size)
        found = {
            "qweight": random.integers(-7, 8, (self.n, self.k)).astype(np.int8),
            "wscale": (0.02 * random.uniform(0.5, 1.5, (self.n, groups))).astype(dtype),
            "inv_smooth": np.exp(0.5 * random.standard_normal(self.k)).astype(dtype),
            "bias": random.standard_normal(self.n).astype(dtype),
        }
        if self.ties:
            found["inv_smooth"] = np.ones(self.k, dtype)
        if self.rank:
            found["down"] = (random.standard_normal((self.k, self.rank)) / np.sqrt(self.k)).astype(dtype)
            found["up"] = random.standard_normal((self.rank, self.n)).astype(dtype)
        return found

    def disagreements(self, y: Array) -> int:
        """Elements of y outside the contract's bound."""
        c = self.constants
        expected, tolerance = reference.svdq_linear(
            self.x, c["qweight"], c["wscale"], c["inv_smooth"], c.get("down"), c.get("up"), c["bias"], self.variant
        )
        return int(np.logical_not(reference.agrees(y, expected, tolerance)).sum())


def unpack_codes(workspace: Array, m: int, k: int, variant: Variant, as_bytes: bool) -> tuple[Array, Array]:
    """(codes int [m, k], scales uint16 [m, groups]) out of the bytes that the first kernel wrote, where no split is.

    Spelled out lane by lane, as plugins/README.md describes the fragments: it shares nothing with the kernel.
    """
    groups = group_count(k, variant.group_size)
    blocks, steps = -(-m // 256) * 16, groups * (variant.group_size // 64)
    size = blocks * steps * (1024 if as_bytes else 512)
    codes = np.zeros((blocks * 16, steps * 64), np.int16)
    words = workspace[:size].view(np.uint32)
    for lane in range(32):
        for w in range(4):
            row, octet = lane // 4 + 8 * (w % 2), 32 * (w // 2) + 8 * (lane % 4)
            for i in range(8):
                if as_bytes:
                    found = words.reshape(blocks, steps, 2, 32, 4)[:, :, i % 2, lane, w] >> (8 * (i // 2)) & 255
                else:
                    found = words.reshape(blocks, steps, 32, 4)[:, :, lane, w] >> (4 * i) & 15
                codes[row::16, octet + i :: 64] = found
    if variant.act_signed:
        half = 128 if as_bytes else 8
        codes = (codes ^ half) - half
    start = -(-size // 256) * 256
    scales = workspace[start : start + 2 * groups * blocks * 16].view(np.uint16).reshape(groups, blocks * 16)
    return codes[:m, :k], scales[:, :m].T
