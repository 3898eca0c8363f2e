"""What a family file says about one class of module, and about one class of pipeline.

A new family is one file beside this one whose ROWS (and PIPELINES, if it has its own pipeline) are named in
`families/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch

from artifact.pictures import PictureRule
from artifact.sampling import LatentRule

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Shapes:
    """Sizes of an example call: images per batch, height and width in latent cells, text tokens."""

    batch: int
    height: int
    width: int
    sequence: int


@dataclass(frozen=True)
class Row:
    """How a module becomes a graph.

    `component`: name of the graph with "{module}" for the folder, e.g. "{module}_decoder".
    `build(config)`: the torch module; it runs where parameters are allocated on the meta device.
    `load(directory, **)`: the class's own loader, which shares no code with the export and so can check it.
    `call(config)`: becomes the module's forward; its parameters are the graph's inputs, one tensor per output.
    `adapt(module)`: changes that only the export needs (what torch computes stays the same to rounding).
    `inputs(config, shapes, dtype, generator)`: example inputs by name, floats in `dtype` where the pipeline's are.
    `axes`: {input or output: names of its axes}; a name stands for a dynamic size, None for a fixed one.
    `file_names(name)`: what a parameter may be called in files, the first that is there counts.
    `last_frame`: parameters (globs) whose tensors in files have an axis of frames before rows and columns, of which
    the graph has the last entry.
    `float32`: parameters that stay float32 in a 16-bit graph (globs on parameter names).
    `quantise`, `weight_only`, `keep`: globs on the dotted names of linears: 4-bit weights and activations, 4-bit
    weights alone, 16 bits. What none of them names stays in 16 bits.
    `quantise_from`: weights of a text encoder from which on that holds; below, it stays in 16 bits whole.
    """

    cls: str
    role: str
    component: str
    build: Callable[[Config], torch.nn.Module]
    load: Callable[..., torch.nn.Module]
    call: Callable[[Config], Callable[..., Any]]
    inputs: Callable[[Config, Shapes, torch.dtype, torch.Generator], dict[str, torch.Tensor]]
    axes: Callable[[Config], dict[str, tuple[str | None, ...]]]
    outputs: tuple[str, ...]
    adapt: Callable[[torch.nn.Module], None] = lambda module: None
    file_names: Callable[[str], tuple[str, ...]] = lambda name: (name,)
    last_frame: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()
    quantise: tuple[str, ...] = ()
    weight_only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ("*",)
    quantise_from: int = 0
    refuse: Callable[[Config], str | None] = lambda config: None
    export_shapes: Shapes = field(default=Shapes(2, 12, 20, 9))
    check_shapes: tuple[Shapes, ...] = (Shapes(3, 16, 8, 13), Shapes(1, 8, 8, 16))

    def treatment(self, linear: str) -> str:
        """ "quantise", "weight_only" or "keep" for a linear's dotted name."""
        for kind in ("weight_only", "quantise"):
            if any(fnmatchcase(linear, glob) for glob in getattr(self, kind)):
                return kind
        return "keep"


@dataclass(frozen=True)
class PipelineRow:
    """What a pipeline class adds to its modules.

    `latents(config_of)`: its LatentRule; `generation(config_of)`: call arguments where the model ships none.
    `config_of(module)` reads a module's config.
    `float32(config_of)`: modules whose graphs stay float32 whatever was asked for.
    `masked`: text encoders that it calls with a mask of the padding; the others attend to it, as they were trained.
    `pictures`: what its call takes beside every prompt; None for text alone.
    `refuse(config_of)`: why modules of these configs do not fit each other, or None.
    """

    cls: str
    latents: Callable[[Callable[[str], Config]], LatentRule]
    generation: Callable[[Callable[[str], Config]], dict[str, Any]]
    float32: Callable[[Callable[[str], Config]], tuple[str, ...]] = lambda config_of: ()
    masked: tuple[str, ...] = ()
    pictures: PictureRule | None = None
    refuse: Callable[[Callable[[str], Config]], str | None] = lambda config_of: None


MASKED = "attention_mask_input"  # set in the config of a module that its pipeline calls with a mask


def text_mask(shapes: Shapes) -> torch.Tensor:
    """int64 [batch, sequence]: 1 for tokens of the text, 0 for the padding behind, of another length in every row."""
    lengths = shapes.sequence - torch.arange(shapes.batch) % 3 * (shapes.sequence // 4)
    return (torch.arange(shapes.sequence)[None] < lengths[:, None]).long()


def random(*shape: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, drawn in float32 so that every dtype sees the same."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
