"""What every stage of a build needs, and what becomes of which component."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from artifact.store import Store
from export.components import Component, components
from export.examples import Examples, read_examples
from export.options import BASELINE, Options
from export.source import Source, open_source
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

    def kept_wide(self) -> list[str]:
        """Text encoders that were asked for in 4 bits and have no such form, a sentence each."""
        if self.options.text_encoder_bits != "4" or not self.quantises:
            return []
        return [
            f"{c.name} stays in 16 bits: a {c.cls} is not quantised, whatever --text-encoder-bits says."
            for c in self.components
            if c.role == "text_encoder" and self.policy(c) == Policy()
        ]

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


def planned(options: Options, stages: Stages) -> tuple[Build, Examples, Examples]:
    """The build that `options` ask for, the examples that it calibrates on and those that it is measured on.

    Reads and checks the source, writes nothing. Raises UserError for all that shows before anything is computed.
    """
    options.check()
    source = open_source(options.model)
    if options.steps is not None:
        source = replace(source, generation={**source.generation, "num_inference_steps": options.steps})
    parts = components(source)
    calibration, drawn = read_examples(options, source)
    out = options.out or Path("out") / Path(source.name).name
    limit = None if options.cache_limit is None else int(options.cache_limit * 1e9)
    store = Store(options.cache or out / ".cache", limit)
    return Build(options, source, parts, out, store, stages), calibration, drawn
