"""What a node finds outside the processor's own cache when a graph runs again and again.

A second-level cache that forgets what was not used for longest is played through: weights by name, activations by the
address that onnxruntime's plan gives them (engines/cost/buffers.py), so that a tensor in a place just left finds it.
A page of memory can only lie in some places of such a cache, by its physical address, which is anybody's guess: here it
is drawn. So what would nearly fill the cache does not stay in it as a whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from engines.cost.buffers import places
from engines.cost.graph import Graph, Tensor
from engines.cost.operations import VIEWS
from engines.cost.probes import PRODUCTS, TIMES

_LEVEL_2 = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_WAYS = _LEVEL_2.with_name("ways_of_associativity")
TYPICAL = 1 << 20  # bytes of a core's second-level cache where the system does not say
PAGE = 4096  # bytes that are kept or forgotten together


@dataclass(frozen=True)
class Cold:
    """`moved`: bytes since the last node of its kind, or the share of a run's that puts the node itself as far away.

    What is gone: `weight`, share of a product's weight; bytes that the node reads (`read`, without that weight) and
    writes (`written`).
    """

    moved: int = 0
    weight: float = 0.0
    read: int = 0
    written: int = 0


def capacity() -> int:
    """Bytes of a core's second-level cache."""
    try:
        text = _LEVEL_2.read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) * 1024 if text.endswith("K") else int(text)
    except (OSError, ValueError):
        return TYPICAL


def colours() -> int:
    """Into how many sets of places pages are told apart by their addresses; 1 where the system does not say."""
    try:
        return max(1, capacity() // (int(_WAYS.read_text(encoding="ascii")) * PAGE))
    except (OSError, ValueError, ZeroDivisionError):
        return 1


class _Cache:
    """Keys with their bytes in one of as many parts as there are colours, the one used last at the end."""

    def __init__(self, size: int, colours: int) -> None:
        self.size, self.part = size, size // colours
        self.kept: list[OrderedDict[Hashable, int]] = [OrderedDict() for _ in range(colours)]
        self.used = [0] * colours

    def use(self, key: Hashable, nbytes: int) -> bool:
        """Whether it was there; it is afterwards, and the oldest keys of its colour are not."""
        colour = crc32(repr(key).encode()) % len(self.kept)
        kept = self.kept[colour]
        there = key in kept
        if there:
            kept.move_to_end(key)
        else:
            kept[key] = nbytes
            self.used[colour] += nbytes
        while self.used[colour] > self.part:
            self.used[colour] -= kept.popitem(last=False)[1]
        return there


def cold(graph: Graph, size: int, colours: int = 1) -> list[Cold]:
    """For every op of the graph, in its order, in a run that follows another one, with a cache of `size` bytes and so
    many colours.

    Bytes of tensors of more than half the cache are left out, but for weights of products: such tensors never stay,
    and the micro-benchmark of such a size has seen that already.
    """
    cache, block = _Cache(size, colours), places(graph)
    most = working_set(graph)
    moved, kinds = 0, dict[str, int]()
    found: list[Cold] = []
    for _ in range(2):  # the first run only fills the cache
        found = []
        for op in graph.ops:
            # Its kernel's code was used by the last node of its kind, what onnxruntime holds of the node a run ago: in
            # the launches' micro-benchmark as many times farther away as its chain goes through all kinds.
            since = max(min(moved - kinds.get(op.title, 0), most), most // TIMES)
            weight, read, written = 0.0, 0, 0
            if op.kind not in VIEWS:
                for i, t in enumerate(op.inputs):
                    if t is None or not t.nbytes:
                        continue
                    gone = _gone(cache, t, block)
                    if i == 1 and t.stored and op.title in PRODUCTS:
                        weight = gone / t.nbytes
                    elif t.nbytes <= size // 2:
                        read += gone
                written = sum(g for t in op.outputs if (g := _gone(cache, t, block)) and t.nbytes <= size // 2)
                moved += sum(t.nbytes for t in (*op.inputs, *op.outputs) if t is not None)
            kinds[op.title] = moved
            found.append(Cold(since, weight, read, written))
    return found


def _gone(cache: _Cache, tensor: Tensor, block: dict[str, int]) -> int:
    """Use all of a tensor; bytes of it that were not in the cache."""
    if tensor.nbytes > cache.size:  # runs through: only its end stays
        count, gone = cache.size // PAGE, tensor.nbytes
    else:
        count, gone = -(-tensor.nbytes // PAGE), 0
    offset = block.get(tensor.name)
    missed = 0
    for i in range(count):
        key = (tensor.name, i) if offset is None else ("", offset // PAGE + i)
        missed += not cache.use(key, min(PAGE, tensor.nbytes))
    return gone or tensor.nbytes * missed // max(count, 1)


def working_set(graph: Graph) -> int:
    """Bytes that a run goes through: the weights, and the widest node's tensors, whose memory the others use again."""
    widest = 0
    for op in graph.ops:
        if op.kind not in VIEWS:
            widest = max(widest, sum(t.nbytes for t in (*op.inputs, *op.outputs) if t is not None and not t.constant))
    return graph.weight_bytes + widest
