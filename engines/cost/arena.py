"""Memory that onnxruntime's CPU arena takes for a graph's activations: what a process grows by, not what is alive.

The arena (onnxruntime/core/framework/bfc_arena.cc) asks the system for regions that double in size, gives the smallest
free piece that holds a request, splits a piece only where at least half of it would be left, and gives nothing back. In
its first run a session takes tensors from it one by one; from the second run with the same shapes on it takes one block
for them all, beside what the first run left.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.cost.buffers import steps
from engines.cost.graph import Graph

REGION = 1 << 20  # the first region, bytes
PIECE = 256  # requests are rounded up to this


@dataclass
class _Piece:
    region: int
    offset: int
    size: int
    free: bool = True


class Arena:
    """Pieces of regions; `touched` is the system's memory that was ever handed out."""

    def __init__(self) -> None:
        self.pieces: list[_Piece] = []
        self.next_region = REGION
        self.regions = 0
        self.reached: dict[int, int] = {}  # by region, the end of what was used of it

    @property
    def touched(self) -> int:
        """Bytes of all regions up to the farthest byte that was handed out of each."""
        return sum(self.reached.values())

    def allocate(self, size: int) -> _Piece:
        """The smallest free piece of at least `size` bytes, of a new region where there is none."""
        size = -(-max(size, 1) // PIECE) * PIECE
        fitting = [p for p in self.pieces if p.free and p.size >= size]
        piece = min(fitting, key=lambda p: p.size) if fitting else self._extend(size)
        if piece.size >= 2 * size:
            rest = _Piece(piece.region, piece.offset + size, piece.size - size)
            self.pieces.insert(self.pieces.index(piece) + 1, rest)
            piece.size = size
        piece.free = False
        self.reached[piece.region] = max(self.reached[piece.region], piece.offset + size)
        return piece

    def _extend(self, size: int) -> _Piece:
        grown = False
        while self.next_region < size:
            self.next_region *= 2
            grown = True
        piece = _Piece(self.regions, 0, self.next_region)
        self.pieces.append(piece)
        self.reached[self.regions] = 0
        self.regions += 1
        if not grown:
            self.next_region *= 2
        return piece

    def release(self, piece: _Piece) -> None:
        """Free a piece and join it with free neighbours of its region."""
        piece.free = True
        at = self.pieces.index(piece)
        for left, right in ((at, at + 1), (at - 1, at)):
            if left < 0 or right >= len(self.pieces):
                continue
            a, b = self.pieces[left], self.pieces[right]
            if a.free and b.free and a.region == b.region:
                a.size += b.size
                del self.pieces[right]


def grown_bytes(graph: Graph) -> int:
    """Bytes that the arena holds after two runs of the graph, the inputs not counted: they are the caller's."""
    arena = Arena()
    held: dict[str, _Piece] = {}
    alive = most = 0
    for step in steps(graph)[0]:
        for output, name in step.over.items():
            held[output] = held.pop(name)
        for name, size in step.taken:
            held[name] = arena.allocate(size)
            alive += held[name].size
        most = max(most, alive)
        for name in step.freed:
            alive -= held[name].size
            arena.release(held.pop(name))
    arena.allocate(most)
    return arena.touched
