"""What the solver found for the layers of a graph, as the rewriting passes read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from passes.solver import Recipe, SolvedLayer
from passes.stacked import lazy
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


def tensor_of(solved: Solved, layer: str, field: str) -> ir.TensorProtocol:
    """An array of a solved layer as the initializer "<layer>.<field>", read again whenever it is used.

    A graph of such tensors holds no layer in memory, however many it has, as long as `solved` holds none.
    """
    dtype = ml_dtypes.int4 if field == "qweight" else None  # one code to a byte in a SolvedLayer

    def read() -> np.ndarray:
        array = getattr(solved[layer].layer, field)
        return array if dtype is None else array.astype(dtype)

    array = getattr(solved[layer].layer, field)
    return lazy(f"{layer}.{field}", ir.DataType.from_numpy(np.dtype(dtype or array.dtype)), list(array.shape), read)
