"""The 16-bit low-rank branch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.accumulator import Accumulator, widen
from passes.body import low_rank
from passes.emit import initializer
from passes.linear import find_linears
from passes.solved import Solved, tensor_of
from passes.stacked import lazy


class LowRankBranch(ir.passes.InPlacePass):
    """y = x·Wᵀ + b → y = x·Rᵀ + (x·down)·up + b with R = W − (down·up)ᵀ, for every solved layer of rank > 0.

    1. The residual R is written in W's type when it is read; `Int4Qdq` replaces it before that.
    2. The sum is taken in float32 and rounded once (accumulator.py).
    3. Left alone: layers that are not in `solved`, and those of rank 0.
    """

    def __init__(self, solved: Solved) -> None:
        self.solved = solved

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for linear in find_linears(model.graph):
            if linear.name in self.solved and self.solved[linear.name].rank > 0:
                _add_branch(model.graph, widen(model.graph, linear), self.solved)
                modified = True
        return ir.passes.PassResult(model, modified)


def _add_branch(graph: ir.Graph, accumulator: Accumulator, solved: Solved) -> None:
    linear = accumulator.linear
    down, up = (initializer(graph, f"{linear.name}.{f}", tensor_of(solved, linear.name, f)) for f in ("down", "up"))
    e = accumulator.emit
    e.prefix += "/branch"
    reader = accumulator.first
    total = e("Add", accumulator.main, low_rank(e, linear.x, down, up))
    graph.insert_before(reader, e.nodes)
    reader.replace_input_with(list(reader.inputs).index(accumulator.main), total)
    weight = linear.weight.const_value
    assert weight is not None

    def residual() -> np.ndarray:
        full, layer = weight.numpy().astype(np.float32), solved[linear.name].layer
        return (full - (layer.down.astype(np.float32) @ layer.up.astype(np.float32)).T).astype(weight.dtype.numpy())

    linear.weight.const_value = lazy(str(linear.weight.name), weight.dtype, list(weight.shape), residual)  # type: ignore[arg-type]
