"""Reuse distance: what is outside the cache when a graph runs again."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.cost import cache
from engines.cost.cache import Cold, capacity, cold
from engines.cost.graph import Graph, Op, Tensor


def tensor(name: str, size: int, constant: bool = False) -> Tensor:
    return Tensor(name, (size,), "UINT8", constant)


def run(weight: int, width: int = 10) -> Graph:
    """x → Neg → a → MatMul with a weight → y → Neg → z."""
    x, a, y, z = (tensor(n, width) for n in "xayz")
    w = tensor("w", weight, True)
    ops = (Op("", "", "Neg", {}, (x,), (a,)), Op("", "", "MatMul", {}, (a, w), (y,)), Op("", "", "Neg", {}, (y,), (z,)))
    return Graph(ops, (x,), (z,), (w,))


def test_a_run_that_fits_the_cache_finds_all_there() -> None:
    assert cold(run(100), 10_000) == [Cold(False, 0)] * 3


def test_a_weight_comes_from_outside_where_others_came_between() -> None:
    assert cold(run(400), 900)[1] == Cold(False, 0)  # 480 bytes a run
    first = run(400)
    twice = Graph(
        (*first.ops, Op("", "", "MatMul", {}, (tensor("z", 10), tensor("v", 450, True)), (tensor("q", 10),))),
        first.inputs, first.outputs, first.weights,
    )  # fmt: skip
    found = cold(twice, 900)
    assert found[1].nbytes == 400 and found[3].nbytes == 450


def test_what_a_node_writes_takes_the_place_of_older_tensors() -> None:
    found = cold(run(2000, width=10), 900)
    assert [c.nbytes for c in found] == [20, 10, 10]  # x was read 2000 bytes ago; the outputs' places, too


def test_what_was_just_written_is_there() -> None:
    found = cold(run(400), 850)
    assert found[2].nbytes == 0


def test_a_tensor_that_never_fits_is_left_to_the_micro_benchmark() -> None:
    assert cold(run(600), 900)[1].nbytes == 0


def test_a_kernel_of_another_kind_has_lost_its_code_once_much_was_moved() -> None:
    found = cold(run(2000), 900)
    assert [c.code for c in found] == [False, False, True]


def test_the_size_of_the_cache_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "size").write_text("1280K\n")
    monkeypatch.setattr(cache, "_LEVEL_2", tmp_path / "size")
    assert capacity() == 1280 * 1024
    monkeypatch.setattr(cache, "_LEVEL_2", tmp_path / "missing")
    assert capacity() == cache.TYPICAL
