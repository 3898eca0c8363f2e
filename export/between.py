"""How much the blocks of a denoiser hand to each other for one image: counted, without computing anything."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from export.components import components, latent_rule
from export.fake_module import fake_module
from export.families.row import Shapes
from export.parts import MOST_BYTES, parts
from export.source import Source

TEXT_TOKENS = 77  # where the call of the pipeline does not say how many


def fitting(source: Source, most: int, count: int, known: int) -> int:
    """Images, at most `count`, for which `most` bytes hold what blocks hand on; `count` where `known` images are more.

    At least 1. The answer depends on the model and its call alone, not on the machine.
    """
    return count if known >= count else max(1, min(count, most // bytes_between(source)))


def bytes_between(source: Source) -> int:
    """About how many bytes outputs of blocks take at their peak in one call of the denoiser for one image, in float32.

    Guidance counts double wherever the pipeline could join its two halves in one call.
    """
    denoiser = next(c for c in components(source) if c.role == "denoiser")
    rule, generation = latent_rule(source), source.generation
    height, width = generation["height"] // rule.scale, generation["width"] // rule.scale
    shapes = Shapes(1 if rule.packed else 2, height, width, generation.get("max_sequence_length", TEXT_TOKENS))
    module, mode = fake_module(denoiser, "float32")
    held = _Held()
    for _, part in parts(module, MOST_BYTES):
        part.register_forward_hook(held.count)
    with mode, torch.no_grad():
        module(**denoiser.row.inputs(denoiser.config, shapes, torch.float32, torch.Generator().manual_seed(0)))
    return held.peak


class _Held:
    """Bytes of tensors that are still referred to."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def count(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        for value in tree_leaves(output):
            if torch.is_tensor(value):
                size = value.numel() * value.element_size()
                self.now += size
                weakref.finalize(value, self._drop, size)
        self.peak = max(self.peak, self.now)

    def _drop(self, size: int) -> None:
        self.now -= size
