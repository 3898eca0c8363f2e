"""What is outside the cache when a graph runs again."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.cost import cache
from engines.cost.cache import PAGE, Cold, capacity, cold, colours
from engines.cost.graph import Graph, Op, Tensor
from engines.cost.probes import TIMES


def tensor(name: str, pages: int, weight: bool = False) -> Tensor:
    return Tensor(name, (pages * PAGE,), "UINT8", weight, weight)


def neg(x: Tensor, y: Tensor) -> Op:
    return Op("", "", "Transpose", {}, (x,), (y,))  # which does not write over its input


def run(*weights: int, width: int = 1) -> Graph:
    """x → Transpose → (MatMul with a weight → Transpose) for every weight."""
    x, last = tensor("x", width), tensor("a", width)
    ops, stored = [neg(x, last)], []
    for i, pages in enumerate(weights):
        w, y, z = tensor(f"w{i}", pages, True), tensor(f"y{i}", width), tensor(f"z{i}", width)
        ops += [Op("", "", "MatMul", {}, (last, w), (y,)), neg(y, z)]
        stored.append(w)
        last = z
    return Graph(tuple(ops), (x,), (last,), tuple(stored))


def gone(graph: Graph, pages: int) -> list[tuple[float, int, int]]:
    return [(c.weight, c.read, c.written) for c in cold(graph, pages * PAGE)]


def test_a_run_that_fits_the_cache_finds_all_there() -> None:
    assert gone(run(10), 20) == [(0, 0, 0)] * 3


def test_weights_come_from_outside_where_a_run_goes_through_more_than_the_cache() -> None:
    found = gone(run(12, 12), 20)
    assert [found[i][0] for i in (1, 3)] == [1.0, 1.0]
    assert gone(run(40), 20)[1][0] == 1.0  # even one that could never stay


def test_an_activation_in_a_place_that_was_just_left_finds_it_in_the_cache() -> None:
    found = gone(run(12, 12), 20)
    assert [written for _, _, written in found[2:]] == [0, 0, 0]  # y0, z0, y1 and z1 share the same two places
    assert [read for _, read, _ in found[1:]] == [0] * 4


def test_a_graphs_input_is_read_from_outside_once_others_took_its_place() -> None:
    assert gone(run(12, 12), 20)[0][1] == PAGE


def test_tensors_of_more_than_half_the_cache_are_left_to_the_micro_benchmark() -> None:
    assert gone(run(1, width=12), 20)[0] == (0, 0, 0)


@pytest.mark.parametrize(("pages", "least", "most"), [(100, 0, 0.05), (480, 0.2, 0.8), (2000, 0.99, 1)])
def test_what_nearly_fills_a_cache_of_many_colours_does_not_stay_as_a_whole(
    pages: int, least: float, most: float
) -> None:
    found = [c.weight for c in cold(run(*[pages // 10] * 10), 512 * PAGE, colours=32)][1::2]
    assert len(found) == 10 and least <= sum(found) / 10 <= most


def test_what_was_moved_since_a_kernel_ran_last_is_at_most_a_run() -> None:
    found = cold(run(10), 100 * PAGE)
    # Three nodes move 2, 12 and 2 pages; a run goes through 10 pages of weights and 2 of others. The first one's kernel
    # ran right before, what is held of the node itself was used a run ago: in the micro-benchmark a quarter as far.
    assert TIMES == 4
    assert [c.moved // PAGE for c in found] == [3, 4, 12]
    views = Graph((Op("", "", "Reshape", {}, (tensor("x", 9),), (tensor("y", 9),)),) * 2, (), (), ())
    assert cold(views, 100 * PAGE) == [Cold(), Cold()]


def test_the_size_of_the_cache_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "size").write_text("1280K\n")
    monkeypatch.setattr(cache, "_LEVEL_2", tmp_path / "size")
    assert capacity() == 1280 * 1024
    monkeypatch.setattr(cache, "_LEVEL_2", tmp_path / "missing")
    assert capacity() == cache.TYPICAL


def test_colours_are_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LEVEL_2", tmp_path / "size")
    monkeypatch.setattr(cache, "_WAYS", tmp_path / "ways")
    assert colours() == 1
    (tmp_path / "size").write_text("2048K\n")
    (tmp_path / "ways").write_text("16\n")
    assert colours() == 32
    (tmp_path / "ways").write_text("0\n")  # fully associative
    assert colours() == 1
