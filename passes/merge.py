"""A 16-bit weight becomes its sum with a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from artifact.errors import UserError
from passes.stacked import lazy

Make = Callable[[], np.ndarray]


class MergeWeights(ir.passes.InPlacePass):
    """W → W + delta, for initializers by name; the sum is taken in float32 and rounded once, when it is written.

    1. `deltas[name]()` is float32 of W's shape.
    2. Raises ValueError for a name that the graph has not. Writing raises UserError where W's type cannot hold a sum.
    """

    def __init__(self, deltas: Mapping[str, Make]) -> None:
        self.deltas = deltas

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for name, delta in self.deltas.items():
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None:
                raise ValueError(f"{name} is no weight of the graph")
            tensor = value.const_value
            value.const_value = lazy(name, tensor.dtype, tensor.shape.numpy(), _sum(name, tensor, delta))
        return ir.passes.PassResult(model, bool(self.deltas))


def _sum(name: str, tensor: ir.TensorProtocol, delta: Make) -> Make:
    kind = tensor.dtype.numpy()

    def merged() -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # seen below
            total = np.array(tensor.numpy(), np.float32) + delta()
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()  # else every weight would stay in memory until the last is written
        largest = float(np.abs(total).max(initial=0))
        if not largest <= float(ml_dtypes.finfo(kind).max):  # NaN is refused, too
            raise UserError(
                f"{name} with the LoRA merged reaches {largest:.3g}, beyond {kind.name}: give a smaller --strength, or "
                "build the artifact with --dtype float32."
            )
        return total.astype(kind)

    return merged
