"""What onnxruntime's arena grows by."""

from __future__ import annotations

from engines.cost.arena import PIECE, REGION, Arena, grown_bytes
from engines.cost.graph import Graph, Op, Tensor


def tensor(name: str, size: int, constant: bool = False) -> Tensor:
    return Tensor(name, (size,), "UINT8", constant)


def test_regions_double_and_only_what_was_handed_out_counts() -> None:
    arena = Arena()
    arena.allocate(1000)
    assert arena.touched == 1024 and arena.pieces[0].size == 1024  # rounded up, the rest split off
    arena.allocate(REGION)  # does not fit the rest of the first region: a second one of twice its size
    assert arena.regions == 2 and arena.touched == 1024 + REGION and arena.next_region == 4 * REGION
    arena.allocate(100 * REGION)
    assert arena.next_region == 128 * REGION and arena.touched == 1024 + 101 * REGION


def test_a_free_piece_is_used_again_the_smallest_that_fits() -> None:
    arena = Arena()
    big, between, small = arena.allocate(64 * PIECE), arena.allocate(PIECE), arena.allocate(8 * PIECE)
    arena.allocate(PIECE)
    arena.release(big)
    arena.release(small)
    assert arena.allocate(8 * PIECE).offset == small.offset and between.free is False
    taken = arena.allocate(40 * PIECE)
    assert taken.offset == big.offset and taken.size == 64 * PIECE  # less than half would be left: not split


def test_free_neighbours_become_one() -> None:
    arena = Arena()
    pieces = [arena.allocate(PIECE) for _ in range(3)]
    for i in (0, 2, 1):
        arena.release(pieces[i])
    assert len(arena.pieces) == 1 and arena.pieces[0].size == REGION


def chain(kind: str, size: int, count: int) -> Graph:
    names = [tensor(f"t{i}", size) for i in range(count + 1)]
    ops = tuple(Op("", "", kind, {}, (names[i],), (names[i + 1],)) for i in range(count))
    return Graph(ops, (names[0],), (names[-1],), ())


def test_a_second_run_takes_one_block_beside_what_the_first_left() -> None:
    size = 8 * REGION
    # Transposes need input and output: two tensors beside the caller's input, then a block of the same two.
    assert grown_bytes(chain("Transpose", size, 4)) == 2 * size + 2 * size


def test_elementwise_nodes_write_over_an_input_that_nobody_reads_again() -> None:
    size = 8 * REGION
    # One tensor throughout: the first run's piece serves the second run, too, once it is free.
    assert grown_bytes(chain("Sigmoid", size, 4)) <= 2 * size < grown_bytes(chain("Transpose", size, 4))


def test_a_view_takes_nothing_and_keeps_what_it_shows() -> None:
    size = 8 * REGION
    x, a, b, c = (tensor(n, size) for n in "xabc")
    view = Op("", "", "Reshape", {}, (a,), (b,))
    ops = (Op("", "", "Transpose", {}, (x,), (a,)), view, Op("", "", "Transpose", {}, (b,), (c,)))
    assert grown_bytes(Graph(ops, (x,), (c,), ())) == grown_bytes(chain("Transpose", size, 2))


def test_an_unpacked_weight_counts() -> None:
    w, d, x, y = tensor("w", 10, True), tensor("d", 8 * REGION, True), tensor("x", 10), tensor("y", 10)
    ops = (Op("", "", "DequantizeLinear", {}, (w,), (d,)), Op("", "", "MatMul", {}, (x, d), (y,)))
    assert grown_bytes(Graph(ops, (x,), (y,), (w,))) >= 8 * REGION
