"""Which linears of a component become 4-bit, which weight-only, and which stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

FOUR_BIT = "4-bit"
WEIGHT_ONLY = "weight-only"
KEEP = "16-bit"


@dataclass(frozen=True)
class Policy:
    """Glob patterns on the dotted names of linears; what neither list names stays in 16 bits.

    `weight_only` decides before `quantise`.
    """

    quantise: tuple[str, ...] = ()
    weight_only: tuple[str, ...] = ()

    def scheme(self, name: str) -> str:
        """FOUR_BIT, WEIGHT_ONLY or KEEP for the linear of this name."""
        if any(fnmatchcase(name, p) for p in self.weight_only):
            return WEIGHT_ONLY
        return FOUR_BIT if any(fnmatchcase(name, p) for p in self.quantise) else KEEP
