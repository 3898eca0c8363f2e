"""What every stage of a build needs, and what becomes of which component."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from artifact.store import Store
from export.components import Component
from export.options import BASELINE, Options
from export.source import Source
from export.stages import Stages
from passes.policy import Policy
from passes.presets import PRESETS

WEIGHT_ONLY_PRESET = "w4a16"  # how components other than the denoiser are written in every quantising preset
KEPT_BYTES = 2 << 30  # 16-bit weights of quantised components up to which their 16-bit graphs are written unasked


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
        """The component that every preset is about."""
        return next(c for c in self.components if c.role == "denoiser")

    def policy(self, part: Component) -> Policy:
        """What becomes 4-bit in the component."""
        row, bits = part.row, self.options.text_encoder_bits
        if part.role != "denoiser" and (bits == "16" or (bits == "auto" and self.weights(part) < row.quantise_from)):
            return Policy()
        return Policy(row.quantise, row.weight_only)

    def weights(self, part: Component) -> int:
        """Number of weights in the component's files."""
        return sum(math.prod(w.shape) for w in self.source.weights(part.module).values())

    @cached_property
    def quantised(self) -> list[Component]:
        """The components of which something becomes 4-bit."""
        return [c for c in self.components if self.policy(c) != Policy()]

    @cached_property
    def presets(self) -> list[str]:
        """Everything that is built, the default first; the 16-bit baseline where it is asked for or small."""
        asked = self.options.presets
        kept = self.options.keep_fp16
        if kept is None:
            kept = 2 * sum(map(self.weights, self.quantised)) <= KEPT_BYTES
        return list(dict.fromkeys([*asked, *([BASELINE] if kept else [])]))

    @property
    def quantises(self) -> bool:
        """Whether any preset has 4-bit layers."""
        return any(PRESETS[p].quantises for p in self.presets)

    def form(self, part: Component, preset: str) -> str:
        """The preset by whose passes `part` is written for `preset`: other components come in few forms."""
        if part not in self.quantised or not PRESETS[preset].quantises:
            return BASELINE
        return preset if part is self.denoiser else WEIGHT_ONLY_PRESET

    def forms(self, part: Component) -> list[str]:
        """The forms that `part` is written in."""
        return list(dict.fromkeys(self.form(part, p) for p in self.presets))
