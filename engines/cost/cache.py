"""What a node finds outside the processor's own cache when a graph runs again and again: its code, and what it reads.

By reuse distance: something is gone once it and what was moved since its last use are more than the cache holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.cost.graph import Graph, Op
from engines.cost.operations import VIEWS

_LEVEL_2 = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
TYPICAL = 1 << 20  # bytes of a core's second-level cache where the system does not say


@dataclass(frozen=True)
class Cold:
    """`code`: whether the kernel's instructions are gone; `nbytes` of what the node reads or writes that are gone."""

    code: bool
    nbytes: int


def capacity() -> int:
    """Bytes of a core's second-level cache."""
    try:
        text = _LEVEL_2.read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) * 1024 if text.endswith("K") else int(text)
    except (OSError, ValueError):
        return TYPICAL


def cold(graph: Graph, size: int) -> list[Cold]:
    """For every op of the graph, in its order, in a run that follows another one, with a cache of `size` bytes.

    What a node writes takes the place of older tensors, which are outside where the run goes through more than the
    cache holds. Tensors of more than half the cache are left out: they never stay, and the micro-benchmark of such a
    size has seen that already.
    """
    moved = 0
    evicting = working_set(graph) > size
    tensors: dict[str, int] = {}
    kinds: dict[str, int] = {}
    found: list[Cold] = []
    for _ in range(2):  # the first run only fills the cache
        found = []
        for op in graph.ops:
            gone = sum(
                t.nbytes
                for t in op.inputs
                if t is not None and t.nbytes <= size // 2 and moved - tensors.get(t.name, -size - 1) + t.nbytes > size
            )
            if evicting:
                gone += sum(t.nbytes for t in op.outputs if t.nbytes <= size // 2)
            quiet = op.kind in VIEWS
            found.append(Cold(moved - kinds.get(op.title, -size - 1) > size, 0 if quiet else gone))
            moved += 0 if quiet else touched(op)
            kinds[op.title] = moved
            tensors.update({t.name: moved for t in (*op.inputs, *op.outputs) if t is not None})
    return found


def touched(op: Op) -> int:
    """Bytes of all that the node reads and writes."""
    return sum(t.nbytes for t in (*op.inputs, *op.outputs) if t is not None)


def working_set(graph: Graph) -> int:
    """Bytes that a run goes through: the weights, and the widest node's tensors, whose memory the others use again."""
    widest = 0
    for op in graph.ops:
        if op.kind not in VIEWS:
            widest = max(widest, sum(t.nbytes for t in (*op.inputs, *op.outputs) if t is not None and not t.constant))
    return graph.weight_bytes + widest
