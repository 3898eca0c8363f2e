"""What every stage of a build needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from artifact.store import Store
from export.components import Component
from export.options import Options
from export.source import Source
from export.stages import Stages
from passes.policy import Policy


@dataclass(frozen=True)
class Build:
    """What is built, from what, where to, and where finished work is stored."""

    options: Options
    source: Source
    components: list[Component]
    out: Path
    store: Store
    stages: Stages

    @property
    def denoiser(self) -> Component:
        """The component that is quantised."""
        return next(c for c in self.components if c.role == "denoiser")

    @property
    def policy(self) -> Policy:
        """What becomes 4-bit in it."""
        return Policy(self.denoiser.row.quantise, self.denoiser.row.weight_only)
