"""Activation memory by liveness: a tensor lives from the node that writes it to the last node that reads it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engines.cost.graph import Graph, Op
from engines.cost.operations import VIEWS

ALIGNMENT = 64  # bytes to which allocators round a tensor


def peak_bytes(graph: Graph, inner: Collection[str] = (), kernels: Sequence[Sequence[Op]] = ()) -> int:
    """Most bytes of activations that are alive at once while the ops run in their order.

    Inputs of the graph live from the start to their last reader, outputs from their writer to the end; while a node
    runs, its inputs and outputs are both there. A view shares its input's memory, which lives as long as any of its
    views. Weights do not count, nor what is computed of weights alone. `kernels`:
    ops that run as one, whose inputs are there until the last of them; `inner`: names of tensors that stay inside.
    Tensors of unknown shape count as nothing: who asks lists them.
    """
    owner: dict[str, str] = {}  # a view's name → the tensor whose memory it is

    def root(name: str) -> str:
        while name in owner:
            name = owner[name]
        return name

    place = {id(op): at for at, op in enumerate(graph.ops)}
    end = {id(op): max(place[id(o)] for o in ops) for ops in kernels for op in ops}
    sizes = {t.name: t.nbytes for t in graph.inputs}
    born = dict.fromkeys(sizes, -1)
    last = dict.fromkeys(sizes, -1)
    for at, op in enumerate(graph.ops):
        for t in op.inputs:
            if t is not None and root(t.name) in sizes:
                last[root(t.name)] = max(last[root(t.name)], end.get(id(op), at))
        first = op.inputs[0] if op.inputs else None
        for t in op.outputs:
            if t.constant or t.name in inner:
                continue
            if op.kind in VIEWS and op.kind not in ("Shape", "Size") and first and root(first.name) in sizes:
                owner[t.name] = first.name
            else:
                sizes[t.name], born[t.name], last[t.name] = t.nbytes, at, at
    for t in graph.outputs:
        if root(t.name) in sizes:
            last[root(t.name)] = len(graph.ops)
    change: dict[int, int] = {}
    for name, size in sizes.items():
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        change[born[name]] = change.get(born[name], 0) + rounded
        change[last[name] + 1] = change.get(last[name] + 1, 0) - rounded
    alive = most = 0
    for at in sorted(change):
        alive += change[at]
        most = max(most, alive)
    return most
