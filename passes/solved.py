"""What the solver found for the layers of a graph, as the rewriting passes read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from passes.solver import Recipe
from plugins.svdq_linear.spec import Variant


class Constants(Protocol):
    """A SolvedLayer, in memory or still in the store: shapes and figures cost nothing, arrays may be read from disk."""

    @property
    def error(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def rounds(self) -> int: ...
    @property
    def inv_smooth(self) -> np.ndarray: ...
    @property
    def down(self) -> np.ndarray: ...
    @property
    def up(self) -> np.ndarray: ...
    @property
    def packed_codes(self) -> np.ndarray: ...
    @property
    def wscale(self) -> np.ndarray: ...
    @property
    def bias(self) -> np.ndarray: ...

    def spec(self, field: str) -> tuple[np.dtype, tuple[int, ...]]: ...


@dataclass(frozen=True)
class Quantised:
    """One layer's recipe and solution."""

    recipe: Recipe
    layer: Constants

    @property
    def rank(self) -> int:
        """Padded rank of the branch; 0 for none."""
        return int(self.layer.spec("down")[1][1])

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
    name, (kind, shape) = f"{layer}.{field}", solved[layer].layer.spec(field)
    four_bit = field == "qweight"
    dtype = ir.DataType.INT4 if four_bit else ir.DataType.from_numpy(kind)

    def read() -> ir.TensorProtocol:
        if four_bit:
            return ir.PackedTensor(solved[layer].layer.packed_codes, dtype, shape=shape, name=name)
        return ir.Tensor(getattr(solved[layer].layer, field), dtype, name=name)

    return ir.LazyTensor(read, dtype, ir.Shape(shape), name=name)
