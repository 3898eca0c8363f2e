"""Time of a graph on this machine's CPU: the nodes that onnxruntime runs, each by the micro-benchmark of its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from engines.cost.cache import capacity, cold, colours, working_set
from engines.cost.ceilings import Ceilings
from engines.cost.graph import Graph
from engines.cost.optimised import optimised as graph
from engines.cost.probes import CALL, COLD, HOT, classify, is_wide, streamed

__all__ = ["assumptions", "graph", "keys", "seconds"]


def keys(graphs: Iterable[Graph]) -> set[str]:
    """The kinds of work that the graphs ask the ceilings for."""
    plain = {c for g in graphs for op in g.ops if (c := classify(op)) is not None}
    return {c.key for c in plain} | {s.key for c in plain if (s := streamed(c)) is not None}


def seconds(graph: Graph, ceilings: Ceilings) -> tuple[float, dict[str, int]]:
    """Seconds of one call, and the operators that no micro-benchmark stands for with their number of nodes.

    Those cost a launch each. Raises KeyError where the ceilings lack a kind that the graph has.
    """
    size, other = working_set(graph), Counter[str]()
    total = ceilings.seconds[CALL][COLD if size > capacity() else HOT]
    gap = 0.0  # since the last product
    for op, gone in zip(graph.ops, cold(graph, capacity(), colours()), strict=True):
        kind = classify(op)
        if kind is None:
            other[op.title] += 1
        near = ceilings.launch(0) if kind is None else ceilings.time(kind)
        taken = near + ceilings.more(gone, size)
        far = streamed(kind) if kind is not None and gone.weight else None
        if far is not None:
            taken += gone.weight * (ceilings.time(far) - near)
        if kind is not None and is_wide(kind):
            taken, gap = taken + ceilings.wake(gap), 0.0
        else:
            gap += taken
        total += taken
    return total, dict(other)


def assumptions(ceilings: Ceilings | None) -> list[str]:
    """How the latency came about, as sentences."""
    if ceilings is None:
        return ["Latency is not predicted: this machine's ceilings are not measured (--target cpu measures them)."]
    threads = ceilings.threads or "one per core"
    return [
        "Every node of the graph as onnxruntime optimises it takes the time of a micro-benchmark of its kind on this "
        f"machine, interpolated between generic sizes (threads: {threads}), and more for code and data that the "
        "cache cannot have kept.",
        "Memory: weights as onnxruntime keeps them, 16-bit ones as they are read, too, what its arena grows by, and "
        + ("nodes and code as chains of tiny nodes take them" if ceilings.structure else "not its nodes and code")
        + "; without Python.",
        "Host work (tokeniser, scheduler, picture) was measured with graphs that answer at once.",
    ]
