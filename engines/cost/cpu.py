"""Time of a graph on this machine's CPU: the nodes that onnxruntime runs, each by the micro-benchmark of its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from engines.cost.cache import capacity, cold, working_set
from engines.cost.ceilings import Ceilings
from engines.cost.graph import Graph
from engines.cost.optimised import optimised as graph
from engines.cost.probes import CALL, COLD, HOT, LAUNCH, classify

__all__ = ["assumptions", "graph", "keys", "seconds"]


def keys(graphs: Iterable[Graph]) -> set[str]:
    """The kinds of work that the graphs ask the ceilings for."""
    return {c.key for g in graphs for op in g.ops if (c := classify(op)) is not None}


def seconds(graph: Graph, ceilings: Ceilings) -> tuple[float, dict[str, int]]:
    """Seconds of one call, and the operators that no micro-benchmark stands for with their number of nodes.

    Those cost a launch each. Raises KeyError where the ceilings lack a kind that the graph has.
    """
    total, other = ceilings.seconds[CALL][COLD], Counter[str]()
    size = working_set(graph)
    for op, away in zip(graph.ops, cold(graph, capacity()), strict=True):
        kind = classify(op)
        if kind is None:
            other[op.title] += 1
        total += ceilings.seconds[LAUNCH][HOT] if kind is None else ceilings.time(kind)
        total += ceilings.more(away, size)
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
        "Memory: weights as they are read and as onnxruntime keeps them, and what its arena grows by; without Python.",
        "Host work (tokeniser, scheduler, picture) is not counted.",
    ]
