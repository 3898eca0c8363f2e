"""What the solver found for the layers of a graph, as the rewriting passes read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from passes.solver import Recipe, SolvedLayer
from plugins.svdq_linear.spec import Variant


@dataclass(frozen=True)
class Quantised:
    """One layer's recipe and solution."""

    recipe: Recipe
    layer: SolvedLayer

    @property
    def rank(self) -> int:
        """Padded rank of the branch; 0 for none."""
        return int(self.layer.down.shape[1])

    @property
    def variant(self) -> Variant:
        """The op's variant, without the activation that a later pass may absorb."""
        r = self.recipe
        return Variant(r.group_size, r.act_bits, r.act_signed, r.act_shift, "none", self.rank > 0)


Solved = Mapping[str, Quantised]  # by the name of the canonical linear
