"""Kernels of a graph and their time on a target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.cost.graph import Graph, walk
from engines.cost.roofline import (
    BEST,
    EXPECTED,
    ISSUE_BOUND,
    WORST,
    Scenario,
    assumptions,
    kernels,
    native_int4,
    seconds,
    unverified,
)
from engines.targets import Target, find
from tests.engines.cost.graphs import away, linear, model, node

IDEAL = Scenario(tensor=1.0, own=1.0, bandwidth=1.0, launch_s=0.0)
TARGET = Target("t", "T", "8.7", 8, 100, 20, 40, 80)


def chain() -> Graph:
    """A product, an activation and a sum behind it, a norm, a product."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Sigmoid", ["a"], ["b"]),
        node("Add", ["b", "x"], ["c"]),
        node("MatMul", ["c", "w"], ["y"]),
    ]
    return walk(model(nodes, {"x": [64, 64]}, ["y"], more=[away("w", (64, 64))]), {"x": (64, 64)})


def test_what_follows_a_product_shares_its_kernel_and_moves_nothing_in_between() -> None:
    found, inner = kernels(chain())
    assert [[op.kind for op in k.ops] for k in found] == [["MatMul", "Sigmoid", "Add"], ["MatMul"]]
    assert inner == {"a", "b"}
    size = 2 * 64 * 64
    assert [k.nbytes for k in found] == [3 * size, 3 * size]  # x and w in, c out; c and w in, y out


def test_without_fusion_every_node_is_a_kernel() -> None:
    found, inner = kernels(chain(), fused=False)
    assert [len(k.ops) for k in found] == [1, 1, 1, 1] and not inner
    assert sum(k.nbytes for k in found) == 2 * 64 * 64 * (3 + 2 + 3 + 3)


def test_a_tensor_with_two_readers_is_written() -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Abs", ["a"], ["b"]), node("Mul", ["a", "b"], ["y"])]
    graph = walk(model(nodes, {"x": [8]}, ["y"]), {"x": (8,)})
    found, inner = kernels(graph)
    assert [[op.kind for op in k.ops] for k in found] == [["Neg"], ["Abs", "Mul"]] and inner == {"b"}


def test_views_and_what_is_computed_of_weights_are_no_kernels() -> None:
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["a"]),
        node("Unsqueeze", ["a", "axis"], ["b"]),
        node("Neg", ["b"], ["y"]),
    ]
    import numpy as np

    made = model(nodes, {"x": [8, 4]}, ["y"], {"axis": np.array([0])}, more=[away("w", (6, 4))])
    (kernel,), _ = kernels(walk(made, {"x": (8, 4)}))
    assert [op.kind for op in kernel.ops] == ["MatMul", "Neg"]
    assert kernel.nbytes == 2 * (8 * 4 + 6 * 4 + 8 * 6)


def test_a_kernel_takes_the_longer_of_computing_and_moving() -> None:
    graph = walk(model([node("MatMul", ["x", "w"], ["y"])], {"x": ["m", 512]}, ["y"], more=[away("w", (512, 512))]),
                 {"x": (4096, 512)})  # fmt: skip
    run, _ = kernels(graph)
    assert seconds(run, TARGET, IDEAL) == pytest.approx(2 * 4096 * 512 * 512 / 20e12)
    slow = replace(TARGET, bandwidth_gb_s=1)
    assert seconds(run, slow, IDEAL) == pytest.approx(2 * (2 * 4096 * 512 + 512 * 512) / 1e9)


def test_four_bit_layers_run_at_the_four_bit_rate_only_where_it_is_native() -> None:
    run, _ = kernels(walk(linear(4096, 512, 512, 0), {"x": (4096, 512)}))
    fast = replace(TARGET, bandwidth_gb_s=1e6)
    operations = 2 * 4096 * 512 * 512
    assert native_int4(fast) and not native_int4(find("h200")) and not native_int4(find("thor-t5000"))
    assert seconds(run, fast, IDEAL) == pytest.approx(operations / (80e12 * ISSUE_BOUND[4]))
    hopper = replace(fast, compute_capability="9.0", int4_tops=None)
    assert seconds(run, hopper, IDEAL) == pytest.approx(operations / (40e12 * ISSUE_BOUND[8]))
    eight, _ = kernels(walk(linear(4096, 512, 512, 0, act_bits=8), {"x": (4096, 512)}))
    assert seconds(eight, fast, IDEAL) == pytest.approx(operations / (40e12 * ISSUE_BOUND[8]))
    sixteen, _ = kernels(walk(linear(4096, 512, 512, 0, act_bits=16), {"x": (4096, 512)}))
    assert seconds(sixteen, fast, IDEAL) == pytest.approx(operations / 20e12)


def test_a_layer_that_quantises_is_launched_twice() -> None:
    launches = Scenario(1, 1, 1, launch_s=1.0)
    quantising, _ = kernels(walk(linear(), {"x": (5, 100)}))
    plain, _ = kernels(walk(linear(rank=0, act_bits=16), {"x": (5, 100)}))
    assert round(seconds(quantising, TARGET, launches)) == 2 and round(seconds(plain, TARGET, launches)) == 1


def test_best_expected_and_worst_are_in_order() -> None:
    run, single = kernels(chain())[0], kernels(chain(), fused=False)[0]
    assert seconds(run, TARGET, BEST) < seconds(run, TARGET, EXPECTED) < seconds(single, TARGET, WORST)


def test_more_rows_are_never_cheaper() -> None:
    times = [seconds(kernels(walk(linear(m), {"x": (m, 100)}))[0], TARGET, EXPECTED) for m in (1, 7, 64, 65, 4096)]
    assert times == sorted(times) and times[0] < times[-1]


def test_assumptions_name_the_source_of_the_bound_and_unverified_figures() -> None:
    nano, h200 = find("orin-nano"), find("h200")
    said = " ".join(assumptions(nano))
    assert "docs/roofline.md" in said and "54%" in said and "Unverified" in said
    assert set(unverified(nano)) <= nano.unverified and unverified(nano)
    assert "83%" in " ".join(assumptions(h200)) and "no native 4-bit" in " ".join(assumptions(h200))
