"""A layer to be solved, checked and brought into float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from passes.solver.element import ELEMENT_TYPES, ElementType
from passes.solver.recipe import Recipe

#: Candidates are compared on this many output rows, or on this many for each rank if that is more: the branch of
#: too few rows fits their rounding errors, whatever the candidate.
PART_ROWS, PART_ROWS_PER_RANK = 256, 8

#: A channel that hardly ever carries anything still weighs this part of the average.
LEAST_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class Problem:
    """weight [N, K], bias [N], samples [S, K] (None: data-free), all float32; samples hold values of T.

    channel_weights [K] are those of all samples, in a part of the problem too.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    samples: torch.Tensor | None
    channel_weights: torch.Tensor
    recipe: Recipe

    @property
    def t(self) -> ElementType:
        return ELEMENT_TYPES[self.recipe.dtype]

    @cached_property
    def wanted(self) -> torch.Tensor:
        """X·Wᵀ float32 [S, N], the layer short of its bias; raises ValueError without samples."""
        if self.samples is None:
            raise ValueError("a layer without samples has no output to compare with")
        return self.samples @ self.weight.T

    def part(self, tokens: int) -> tuple[Problem, torch.Tensor]:
        """Evenly spaced output rows, enough to compare candidates by, and at most `tokens` samples; which rows."""
        rows = _evenly(self.weight.shape[0], part_rows(self.weight.shape[0], self.recipe.rank))
        samples = None if self.samples is None else self.samples[_evenly(self.samples.shape[0], tokens)]
        return replace(self, weight=self.weight[rows], bias=self.bias[rows], samples=samples), rows


def part_rows(outputs: int, rank: int) -> int:
    """How many of a layer's output rows candidates are compared on."""
    return min(outputs, max(PART_ROWS, PART_ROWS_PER_RANK * rank))


def check(weight: np.ndarray, bias: np.ndarray | None, samples: np.ndarray | None, recipe: Recipe) -> Problem:
    """weight [N, K], bias [N], samples [S, K] of any float type as a Problem.

    Raises ValueError, naming what it saw, for shapes that do not fit, a rank above min(N, K), and values that
    are not finite or do not fit T.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"the weight has shape {weight.shape}; it must be [N, K], both at least 1")
    outputs, channels = weight.shape
    if recipe.rank > min(outputs, channels):
        raise ValueError(
            f"rank is {recipe.rank}, but a weight of shape {(outputs, channels)} has at most {min(outputs, channels)}"
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"the bias has shape {bias.shape}; the weight's {outputs} rows need {(outputs,)}")
    if samples is not None and (samples.ndim != 2 or samples.shape[1] != channels or not samples.shape[0]):
        raise ValueError(f"the samples have shape {samples.shape}; they must be [S, {channels}] with S at least 1")
    t = ELEMENT_TYPES[recipe.dtype]
    wide = _float32("weight", weight)
    offset = torch.zeros(outputs) if bias is None else _float32("bias", bias)
    inputs = None if samples is None else t.rounded(_float32("samples", samples))
    for name, values in (("bias", offset), ("samples", inputs)):
        if values is not None and not bool(torch.isfinite(t.rounded(values)).all()):
            raise ValueError(f"the {name} reach {float(values.abs().max())}, beyond {recipe.dtype}'s {t.largest}")
    return Problem(wide, offset, inputs, channel_weights(inputs, channels), recipe)


def channel_weights(samples: torch.Tensor | None, channels: int) -> torch.Tensor:
    """How much an error of a channel of the weight shows in the output: rms of the input, float32 [K].

    ||E · diag(weights)|| is the expected output error of an error E of the weight, up to one factor, if
    channels are uncorrelated. Of a smoothed weight the weights are these times inv_smooth. Ones without
    samples.
    """
    if samples is None:
        return torch.ones(channels)
    rms = samples.square().mean(0).sqrt()
    mean = float(rms.mean())
    return rms.clamp_min(LEAST_WEIGHT * mean) / mean if mean else torch.ones(channels)


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix products on one thread: how a sum is split over threads would show in its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _float32(name: str, values: np.ndarray) -> torch.Tensor:
    """A copy in memory that torch aligned, because alignment, too, changes the order of sums."""
    copy = torch.empty(values.shape, dtype=torch.float32)
    if values.dtype == np.float16:
        with warnings.catch_warnings():  # it says that a mapped file cannot be written to; nobody does
            warnings.simplefilter("ignore")
            copy.copy_(torch.from_numpy(np.ascontiguousarray(values)))  # ten times faster than numpy's conversion
    else:
        copy.numpy()[...] = values
    if not bool(torch.isfinite(copy.sum())):  # one pass; the exact place is looked for only when there is one
        bad = (~torch.isfinite(copy)).nonzero()
        if len(bad):
            at = tuple(int(i) for i in bad[0])
            raise ValueError(f"the {name} hold {float(copy[at])} at {at} ({len(bad)} such values); all must be finite")
    return copy


def _evenly(count: int, wanted: int) -> torch.Tensor:
    return torch.arange(min(count, wanted)) * count // min(count, wanted)
