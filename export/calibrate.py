"""What each linear of the denoiser really sees: rows of its input, drawn over prompts, steps and tokens.

SVDQuant calibrates on samples of all denoising steps (arXiv 2411.05007, appendix C).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artifact.pictures import Pictures
from artifact.sampling import Progress, initial_noise, sample
from export.batches import batch_size, batches, within
from export.between import fitting
from export.blockwise import block_by_block, in_file
from export.components import latent_rule
from export.pipeline import denoiser_of
from export.prompt_files import default_prompts, read_prompts, reference_prompts
from export.source import Source

__all__ = ["Reservoir", "calibrate", "default_prompts", "read_prompts", "reference_prompts"]

MOST_PER_CALL = 32
MOST_BETWEEN = 4 << 30  # bytes, about, that blocks hand to each other


class Reservoir:
    """A uniform draw of at most `rows` of all the rows that are offered, whatever their number.

    Every row gets a random number and the rows with the smallest stay: the memory is that of the draw, and the
    choice depends only on the seed and on the order in which rows come. The draw lies in an unnamed file in
    `directory`: those of all layers together have gigabytes.
    """

    def __init__(self, rows: int, seed: int, directory: Path) -> None:
        self._directory = directory
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._drawn = np.full(rows, np.inf)  # the random number of each kept row, infinity for a free place
        self._kept: np.ndarray | None = None  # float32 [rows, K]

    def offer(self, values: torch.Tensor) -> None:
        """values: [..., K] of any float dtype."""
        values = values.detach().reshape(-1, values.shape[-1])
        rows = len(self._drawn)
        if self._kept is None:
            self._kept = in_file(self._directory, (rows, values.shape[-1]), torch.float32).numpy()
        drawn = self._random.random(values.shape[0])
        limit = np.partition(np.concatenate((self._drawn, drawn)), rows - 1)[rows - 1]
        chosen = np.flatnonzero(drawn <= limit)
        free = np.flatnonzero((self._drawn > limit) | np.isinf(self._drawn))[: len(chosen)]
        if len(chosen):
            self._kept[free] = values[torch.from_numpy(chosen).to(values.device)].float().cpu().numpy()
            self._drawn[free] = drawn[chosen]

    def array(self) -> np.ndarray:
        """[rows or fewer, K] float16, or float32 where float16 cannot hold a value; in a file, too."""
        assert self._kept is not None, "nothing was offered"
        order = np.argsort(self._drawn, kind="stable")[: np.isfinite(self._drawn).sum()]
        kept = self._kept[order]
        wide = np.abs(kept).max() > np.finfo(np.float16).max
        found = in_file(self._directory, kept.shape, torch.float32 if wide else torch.float16).numpy()
        found[:] = kept
        return found


def calibrate(
    source: Source,
    pipe: Any,
    modules: Mapping[str, str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    rows: int,
    seed: int,
    directory: Path,
    progress: Progress | None = None,
    pictures: Pictures | None = None,
) -> dict[str, np.ndarray]:
    """Run the pipeline on `prompts` (with `seeds`' noise and, where it takes some, `pictures`) over all steps and
    sample the inputs of `modules`.

    At every step all prompts go through a block of the denoiser before the next block runs (blockwise.py): weights
    that are not in memory are read once a step. What blocks hand on, about MOST_BETWEEN bytes at most, lies in
    `directory`.

    `modules`: {key: dotted path of a linear or 1x1 convolution in the denoiser}; inputs that several linears share
    are named once. Returns {key: [at most `rows`, K] float16 (float32 where it would overflow)}, K last also for
    convolutions. The unconditional half of guidance counts like the rest.
    """
    denoiser = denoiser_of(pipe)
    reservoirs = {key: Reservoir(rows, _seed(seed, key), directory) for key in modules}
    hooks = [
        denoiser.get_submodule(path).register_forward_pre_hook(_hook(reservoirs[key])) for key, path in modules.items()
    ]
    rule, generation = latent_rule(source), source.generation
    size = batch_size(rule, generation, MOST_PER_CALL)
    together = max(size, fitting(source, MOST_BETWEEN, min(len(prompts), MOST_PER_CALL), size))
    try:
        for part in batches(len(prompts), together):
            noise = initial_noise(rule, seeds[part], generation["height"], generation["width"])
            ticks = within(progress, part, len(prompts), "calibrating")
            beside = None if pictures is None else pictures[part]
            with block_by_block(denoiser, size, part.stop - part.start, directory):
                sample(pipe, prompts[part], noise, generation, ticks, decode=False, pictures=beside)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: reservoirs.pop(key).array() for key in modules}


def _hook(reservoir: Reservoir) -> Any:
    def offer(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0]
        reservoir.offer(x.permute(0, 2, 3, 1) if isinstance(module, torch.nn.Conv2d) else x)

    return offer


def _seed(seed: int, key: str) -> int:
    """A stream of its own for each key, whatever other keys there are."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "little")
