"""Which nodes of a graph onnxruntime ran where, from its own profile of one call.

The profile is a JSON list in the trace-event format of Chrome; an event of category "Node" names the operator and the
execution provider in its `args`. It is the placement that ran, after fusion, and every version since 1.22 writes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Placement:
    """`nodes`: number of nodes by execution provider and then by operator."""

    nodes: Mapping[str, Mapping[str, int]]

    @property
    def fallen_back(self) -> dict[str, int]:
        """Nodes by operator that the CPU ran though another provider was there; the most frequent first."""
        if set(self.nodes) <= {_CPU}:
            return {}
        return dict(Counter(self.nodes.get(_CPU, {})).most_common())

    @property
    def total(self) -> int:
        """Nodes in all."""
        return sum(sum(by.values()) for by in self.nodes.values())

    def __str__(self) -> str:
        """ "12 of 340 nodes fell back to the CPU (Shape 8, Gather 4)"; "all 340 nodes on CUDA"."""
        fallen = self.fallen_back
        if fallen:
            listed = ", ".join(f"{op} {n}" for op, n in fallen.items())
            return f"{sum(fallen.values())} of {self.total} nodes fell back to the CPU ({listed})"
        where = " and ".join(p.removesuffix("ExecutionProvider") for p in self.nodes)
        return f"all {self.total} nodes on {where}"


def read_profile(path: Path) -> Placement:
    """The placement that a profile tells of; a node that ran several times counts once.

    What copies between host and device (MemcpyToHost, MemcpyFromHost) is no node of the model and is left out.
    """
    found: dict[str, Counter[str]] = {}
    seen = set()
    for event in json.loads(path.read_text(encoding="utf-8")):
        args = event.get("args", {})
        if event.get("cat") != "Node" or "provider" not in args or args["op_name"].startswith("Memcpy"):
            continue
        # Nodes of an If's or a Loop's body have indices of their own: the name tells them apart.
        node = (event["name"], args.get("node_index"))
        if node not in seen:
            seen.add(node)
            found.setdefault(args["provider"], Counter())[args["op_name"]] += 1
    return Placement({provider: dict(by) for provider, by in found.items()})
