"""Which graphs a pipeline becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from artifact.errors import UserError, nearest
from artifact.pictures import PictureRule
from artifact.sampling import LatentRule
from export.families import MODULES, ROWS, pipeline_row
from export.families.row import MASKED, Row
from export.source import Source

DTYPES = {"float32": torch.float32, "float16": torch.float16}
_ORDER = ("text_encoder", "denoiser", "vae_decoder", "vae_encoder")
# What a pipeline keeps in torch or does without: text on the way in, and the step rule.
_NOT_GRAPHS = ("scheduler", "tokenizer", "feature_extractor", "safety_checker", "image_encoder")


@dataclass(frozen=True)
class Component:
    """One graph: its `name`, the pipeline's folder it comes from, its role, class and config.

    `float32`: the pipeline needs it in float32 whatever dtype the others have (SDXL's VAE).
    """

    name: str
    module: str
    role: str
    cls: str
    config: dict[str, Any]
    float32: bool = False

    def __str__(self) -> str:
        return f"component {self.name}"

    @property
    def row(self) -> Row:
        """What the family knows about it."""
        return next(r for r in MODULES[self.cls] if r.role == self.role)

    def dtype(self, asked: str) -> str:
        """The dtype of its graph where `asked` was chosen for the pipeline."""
        return "float32" if self.float32 else asked


def components(source: Source) -> list[Component]:
    """The graphs of a pipeline in the order in which a run needs them.

    Raises UserError for a pipeline or a module class that is not supported, naming those that are, and for modules that
    do not fit each other.
    """
    pipeline = pipeline_row(source.pipeline)
    if reason := pipeline.refuse(source.config):
        raise UserError(f"{source.name} is no {source.pipeline}: {reason}.")
    upcast = pipeline.float32(source.config)
    found = []
    for module, cls in source.modules.items():
        if module.rstrip("_23") in _NOT_GRAPHS:
            continue
        if cls not in MODULES:
            raise UserError(f"{source.name}'s {module} is a {cls}, which is not supported; {nearest(cls, known())}")
        config = source.config(module) | ({MASKED: True} if module in pipeline.masked else {})
        for row in MODULES[cls]:
            reason = row.refuse(config)
            if reason:
                raise UserError(f"{source.name}'s {module} ({cls}) has {reason}: this kind is not supported.")
            name = row.component.format(module=module)
            found.append(Component(name, module, row.role, cls, config, module in upcast))
    return sorted(found, key=lambda c: _ORDER.index(c.role))


def known() -> list[str]:
    """Class names of the modules that are supported."""
    return sorted({r.cls for r in ROWS})


def latent_rule(source: Source) -> LatentRule:
    """How the pipeline's initial latents are laid out."""
    return pipeline_row(source.pipeline).latents(source.config)


def picture_rule(source: Source) -> PictureRule | None:
    """What the pipeline takes beside every prompt; None for text alone."""
    return pipeline_row(source.pipeline).pictures
