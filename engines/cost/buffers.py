"""Buffers of a graph's activations as onnxruntime plans them: views share, elementwise nodes write over their input.

From the second run with the same shapes on a session takes one block for all of them. Its plan
(onnxruntime/core/framework/mem_pattern_planner.h) puts a tensor into the smallest gap between those that are alive,
behind the last one where none is wide enough.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.cost.graph import Graph
from engines.cost.operations import PER_ELEMENT, VIEWS
from engines.cost.probes import ROWS

ALIGNMENT = 64  # bytes
_IN_PLACE = frozenset(PER_ELEMENT) - frozenset(k.rpartition(".")[2] for k in ROWS)


@dataclass(frozen=True)
class Step:
    """What a node does to the buffers: `taken` (name, bytes) are new, `over` {output: input that it writes over},
    `freed` names that nobody reads after it."""

    taken: tuple[tuple[str, int], ...]
    over: dict[str, str]
    freed: tuple[str, ...]


def steps(graph: Graph) -> tuple[list[Step], dict[str, str]]:
    """A step for every op of the graph, in its order, and whose buffer every view is."""
    last: dict[str, int] = {}
    owner: dict[str, str] = {}
    for at, op in enumerate(graph.ops):
        for t in op.inputs:
            if t is not None:
                last[owner.get(t.name, t.name)] = at
        for t in op.outputs:
            first = next((i for i in op.inputs if i is not None), None)
            if op.kind in VIEWS and op.kind != "Shape" and first is not None:
                owner[t.name] = owner.get(first.name, first.name)
            root = owner.get(t.name, t.name)
            last[root] = max(last.get(root, at), at)
    for t in graph.outputs:
        last[owner.get(t.name, t.name)] = len(graph.ops)
    found: list[Step] = []
    held: dict[str, None] = {}  # in the order in which they were taken
    for at, op in enumerate(graph.ops):
        taken, over = [], {}
        for t in op.outputs:
            if t.name in owner:
                continue
            reused = next(
                (r for i in op.inputs if i is not None and op.kind in _IN_PLACE and i.nbytes == t.nbytes
                 and (r := owner.get(i.name, i.name)) in held and last[r] == at), None,
            )  # fmt: skip
            if reused is not None:
                del held[reused]
                over[t.name] = reused
            else:
                taken.append((t.name, t.nbytes))
            held[t.name] = None
        freed = tuple(n for n in held if last.get(n, at) <= at)
        for name in freed:
            del held[name]
        found.append(Step(tuple(taken), over, freed))
    return found, owner


def places(graph: Graph) -> dict[str, int]:
    """Offset of every activation in the block; inputs of the graph and weights are not in it."""
    alive: list[tuple[int, int, str]] = []  # offset, size, name
    found: dict[str, int] = {}
    plan, owner = steps(graph)
    for step in plan:
        for output, name in step.over.items():
            found[output] = found[name]
            alive = [(o, s, output if n == name else n) for o, s, n in alive]
        for name, size in step.taken:
            size = -(-size // ALIGNMENT) * ALIGNMENT
            found[name] = _gap(alive, size)
            alive.append((found[name], size, name))
            alive.sort()
        alive = [piece for piece in alive if piece[2] not in step.freed]
    for name, root in owner.items():
        if root in found:
            found[name] = found[root]
    return found


def _gap(alive: list[tuple[int, int, str]], size: int) -> int:
    """Offset of the smallest gap that holds `size` bytes."""
    end, best, least = 0, None, None
    for offset, length, _ in alive:
        spare = offset - end - size
        if spare >= 0 and (least is None or spare < least):
            best, least = end, spare
        end = max(end, offset + length)
    return end if best is None else best
