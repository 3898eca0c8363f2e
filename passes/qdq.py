"""Smoothing and 4-bit Q/DQ on the residual weight and on the activation."""

from __future__ import annotations

import onnx_ir as ir

from passes.accumulator import Accumulator, widen, widened
from passes.body import product, quantised, smoothed
from passes.emit import initializer
from passes.linear import find_linears
from passes.solved import Solved, tensor_of


class Int4Qdq(ir.passes.InPlacePass):
    """x·Rᵀ → Q(x̂)·dequant(qweight)ᵀ, x̂ = (x + shift) ⊙ inv_smooth, for every solved layer.

    1. The weight becomes an INT4 initializer "<name>.qweight" with scales "<name>.wscale"; the 16-bit one is dropped
       unless something else reads it.
    2. Activations are quantised to `act_bits` with scales computed in the graph; 16 bits: smoothed only.
    3. The bias takes the solver's values (corrected for the shift).
    4. Left alone: layers that are not in `solved`.

    Raises ValueError where `solved` names layers that the graph does not have.
    """

    def __init__(self, solved: Solved) -> None:
        self.solved = solved

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        plain = {linear.name: linear for linear in find_linears(graph)}
        wide = widened(graph)
        unknown = sorted(set(self.solved) - set(plain))
        if unknown:
            raise ValueError(f"the graph has no linear {', '.join(unknown[:3])} ({len(unknown)} solved layers unknown)")
        for name in plain:
            if name in self.solved:
                _quantise(graph, wide.get(name) or widen(graph, plain[name]), self.solved)
        return ir.passes.PassResult(model, bool(self.solved))


def _quantise(graph: ir.Graph, accumulator: Accumulator, solved: Solved) -> None:
    linear = accumulator.linear
    name, variant = linear.name, solved[linear.name].variant
    qweight, wscale, inv_smooth = (
        initializer(graph, f"{name}.{field}", tensor_of(solved, name, field))
        for field in ("qweight", "wscale", "inv_smooth")
    )
    graph.initializers[f"{name}.bias"].const_value = tensor_of(solved, name, "bias")
    e = accumulator.emit
    e.prefix += "/qdq"
    values = smoothed(e, linear.x, inv_smooth, variant.act_shift)
    if variant.quantises_activations:
        values = quantised(e, values, linear.x, variant, linear.k)
    main = product(e, values, qweight, wscale, variant.group_size)
    cast = accumulator.main.producer()
    assert cast is not None
    graph.insert_before(linear.matmul, e.nodes)
    ir.convenience.replace_all_uses_with(accumulator.main, main)
    graph.remove([cast, linear.matmul], safe=True)
    if not list(linear.transpose.outputs[0].uses()):
        graph.remove(linear.transpose, safe=True)
    if not list(linear.weight.uses()):
        del graph.initializers[str(linear.weight.name)]
