"""Times are looked up between the points that were measured; micro-benchmarks build and run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.cost import ceilings as module
from engines.cost.cache import Cold
from engines.cost.ceilings import ALWAYS, Ceilings, grid, path
from engines.cost.graph import Op, Tensor
from engines.cost.probe_graphs import build
from engines.cost.probes import (
    BETWEEN,
    BINARY,
    CONVOLUTIONS,
    COPIES,
    COPY,
    EMPTY,
    KINDS,
    LAUNCH,
    LAYOUTS,
    MOVED,
    MOVERS,
    OTHERS,
    READ,
    ROWS,
    TIMES,
    UNARY,
    VIEWS,
    Class,
    axes,
    classify,
    streamed,
)
from engines.cost.structure import Structure
from tests.engines.cost.invented import always


def made(**keys: float) -> Ceilings:
    """Every key takes its number of nanoseconds per unit of its size, and a launch 1 µs (3 where it is cold)."""
    found = always(Ceilings(1))
    for key, each in keys.items():
        found.seconds[key] = {p: 1e-6 + each * 1e-9 * math.prod(p) for p in grid(key)}
    return found


NEG = "Neg||FLOAT"
PRODUCT = "product|constant|FLOAT"


def test_a_measured_point_is_found_as_it_is() -> None:
    known = made(**{NEG: 1.0})
    size = axes(NEG)[0][2]
    assert known.time(Class(NEG, (size,))) == pytest.approx(1e-6 + size * 1e-9, rel=1e-6)


def test_between_points_times_are_interpolated_in_logarithms() -> None:
    known = made(**{NEG: 1.0})
    known.seconds[NEG] = {p: 1e-12 * p[0] ** 2 for p in grid(NEG)}  # least 2.56e-10: no launch of its own
    known.seconds[LAUNCH] = {(b,): 0.0 for b in BETWEEN}
    for size in (100, 5000, 40_000, 1_000_000):
        assert known.time(Class(NEG, (size,))) == pytest.approx(1e-12 * size**2, rel=1e-6)


def test_between_points_and_beyond_them() -> None:
    known = made(**{NEG: 1.0, PRODUCT: 0.01})
    low, high = axes(NEG)[0][-2:]
    between = known.time(Class(NEG, (int(math.sqrt(low * high)),)))
    assert low * 1e-9 < between < high * 1e-9
    assert known.time(Class(NEG, (high * 10,))) == pytest.approx(high * 10 * 1e-9, rel=0.01)
    m, k, n = (a[-1] for a in axes(PRODUCT))
    assert known.time(Class(PRODUCT, (m * 2, k * 3, n))) == pytest.approx(6 * m * k * n * 1e-11, rel=0.01)
    assert known.time(Class(NEG, (1,))) == pytest.approx(known.time(Class(NEG, (axes(NEG)[0][0],))))


def test_a_node_of_many_units_is_launched_once() -> None:
    known = made(**{PRODUCT: 0.01})
    one, ten = (known.time(Class(PRODUCT, (64, 64, 64), times)) for times in (1, 10))
    assert ten - 1e-6 == pytest.approx(10 * (one - 1e-6), rel=1e-3)


def test_larger_nodes_are_never_cheaper() -> None:
    known = made(**{NEG: 1.0, PRODUCT: 0.01})
    sizes = [1, 15, 16, 17, 1000, 5000, 1 << 20, 1 << 23, 1 << 26]
    for times in ([known.time(Class(NEG, (s,))) for s in sizes],
                  [known.time(Class(PRODUCT, (64, s, 64))) for s in sizes]):  # fmt: skip
        assert times == sorted(times)


def test_what_the_cache_lost_costs_more() -> None:
    known = made()
    assert known.more(Cold(), 1 << 28) == 0
    assert known.more(Cold(moved=KINDS * BETWEEN[-1]), 1 << 28) == pytest.approx(2e-6)
    assert known.more(Cold(read=1000), 1 << 28) == pytest.approx(1000 * 3e-10 / 2)
    assert known.more(Cold(written=1000), 1 << 28) == pytest.approx(1000 * 3e-10 / 2)
    assert known.more(Cold(read=1000, written=1000), 1 << 17) == 0  # the working set fits


def test_a_launch_is_never_cheaper_for_more_that_was_moved() -> None:
    known = made()
    known.seconds[LAUNCH][(BETWEEN[3],)] = 0.5e-6  # a disturbance
    times = [known.launch(moved) for moved in (0, 1000, 10**5, 10**6, 10**7, 10**9)]
    assert times == sorted(times) and times[0] == 1e-6 and times[-1] == pytest.approx(3e-6)


def test_a_product_loses_by_the_other_nodes_before_it() -> None:
    known = made()
    assert [known.wake(gap) for gap in (0, 4e-5, 1e-4, 1.0)] == pytest.approx([0, 4e-6, 1e-5, OTHERS[-1] * 1e-6])


def test_a_weight_that_streams_in_has_a_micro_benchmark_of_its_own() -> None:
    near = Class(PRODUCT, (80, 192, 576))
    assert streamed(near) == Class("product|streamed|FLOAT", (80, 192, 576))
    assert streamed(Class("product|computed|FLOAT", (1, 1, 1))) is None and streamed(Class(NEG, (1,))) is None
    _, _, hot, _ = build(PRODUCT, (16, 64, 64))
    _, _, far, _ = build("product|streamed|FLOAT", (16, 64, 64))
    assert far * 64 * 64 * 4 > 1 << 20 > hot * 64 * 64 * 4 // 2


def test_equal_weights_would_be_kept_once() -> None:
    import onnx
    from onnx import numpy_helper

    model, _, count, _ = build("product|streamed|FLOAT", (16, 64, 64))
    weights = [numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer]
    assert len({w.tobytes() for w in weights}) == len(weights) == count


def test_they_are_kept_for_this_machine_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Ceilings.cached(1).seconds == {}
    known = made(**{NEG: 1.0})
    known.save()
    assert Ceilings.cached(1).structure is None
    known.structure, known.unit = Structure(1e6, 10.5, 5.0, 100.0), 3e-4
    known.save()
    assert Ceilings.cached(1).structure == known.structure and Ceilings.cached(1).unit == 3e-4
    assert Ceilings.cached(1).seconds == known.seconds and Ceilings.cached(2).seconds == {}
    assert path(1) != path(2)
    assert Ceilings.cached(1).missing([NEG, PRODUCT]) == [PRODUCT]
    kept = json.loads(path(1).read_text())
    kept["machine"]["cpu"] = "another"
    path(1).write_text(json.dumps(kept))
    assert Ceilings.cached(1).seconds == {}
    path(1).write_text("{damaged")
    assert Ceilings.cached(1).seconds == {}


def test_points_of_an_older_grid_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = made(**{NEG: 1.0})
    known.seconds[NEG].pop(axes(NEG)[0][:1])
    known.save()
    assert Ceilings.cached(1).missing([NEG]) == [NEG]


def test_measuring_keeps_the_median_of_all_rounds_and_what_always_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []

    def timed(self: Ceilings, key: str, point: tuple[int, ...], *a: object) -> tuple[float, int, int]:
        if (key, point) == (READ, (MOVED[0],)):
            rounds.append(key)
        return {EMPTY: 0.0, READ: 1e-3, COPY: 2e-3, NEG: [3e-6, 1e-6, 2e-6][len(rounds) - 1]}[key], 1, 0

    class Even:
        usual = 1.0

        def relative(self, measure: Callable[[], float]) -> float:
            return measure()

    beside = TIMES * KINDS * 1e-6
    monkeypatch.setattr(Ceilings, "_timed", timed)
    monkeypatch.setattr(Ceilings, "pace", Even())
    monkeypatch.setattr(module, "_calling", lambda *a, **k: 1e-5)
    monkeypatch.setattr(Ceilings, "_beside", lambda self, key, without, point: (
        (3 if point[0] else 1) * beside, 1e-3))  # fmt: skip
    known = Ceilings(1, {NEG: {p: 1e-7 for p in grid(NEG)}})
    seen = []
    known.measure([NEG], rounds=2, progress=lambda done, of: seen.append((done, of)))
    assert set(known.seconds) == {NEG, *ALWAYS} and seen[-1] == (2 * (len(grid(NEG)) + 2 * len(MOVED)),) * 2
    # Two kinds of nodes suffer from each other: either half of them half of it.
    assert known.seconds[LAUNCH] == {(b,): pytest.approx(2e-6 if b else 1e-6) for b in BETWEEN}
    assert set(known.seconds[NEG].values()) == {2e-6}  # between 3 and 1
    known.measure([NEG], rounds=1)
    assert set(known.seconds[NEG].values()) == {2e-6}  # and of 3, 1 and 2
    Even.usual = 2.0  # the machine is slower on the whole than it was at first
    known.settle()
    assert set(known.seconds[NEG].values()) == {4e-6}
    known.unit = 0.5  # times that it already held are of a faster machine
    known.settle()
    assert set(known.seconds[NEG].values()) == {1e-6}


PROBES = [
    *(f"{k}|" for k in sorted(VIEWS)), *(f"{k}||FLOAT" for k in sorted(UNARY - {"Not"})), "Not||BOOL",
    *(f"{k}|{v}|FLOAT" for k in sorted(BINARY - {"And", "Or", "com.microsoft.BiasGelu"})
      for v in ("same", "scalar", "row", "column")),
    "And|same|BOOL", "Or|row|BOOL", "com.microsoft.BiasGelu|row|FLOAT",
    *(f"{k}||FLOAT" for k in sorted(ROWS - {"RMSNormalization"})),
    *(f"{k}||FLOAT16" for k in sorted(COPIES - {"Transpose"})),
    "Transpose|kept|FLOAT16", "Transpose|turned|FLOAT", *(f"{k}||FLOAT" for k in sorted(LAYOUTS)),
    *(f"{k}|{s}|FLOAT" for k in sorted(CONVOLUTIONS) for s in (1, 3)),
    *(f"product|{v}|FLOAT" for v in ("constant", "streamed", "computed", "computedT")),
    "Cast||FLOAT16>FLOAT", "Cast||INT64>FLOAT", "QuantizeLinear|row|INT4", "QuantizeLinear|row|UINT4",
    "DequantizeLinear|row|INT4", "DequantizeLinear|block|INT4", LAUNCH, MOVERS, READ, COPY,
]  # fmt: skip


@pytest.mark.parametrize("key", PROBES)
def test_every_micro_benchmark_runs_as_many_nodes_as_it_says(key: str) -> None:
    import onnx
    import onnxruntime as ort

    point = tuple(a[1] if len(a) > 1 else a[0] for a in axes(key))
    model, feeds, count, shapes = build(key, point)
    nodes = onnx.load_from_string(model).graph.node
    assert count + shapes == len(nodes) - 1 and count > 0
    if key != LAUNCH:
        assert len({n.op_type for n in nodes[:-1]} - {"Shape"}) == (0 if key == "Shape|" else 1)
    else:
        assert count == 2 * TIMES * KINDS  # each with one before it that moves data
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run(None, feeds)


def op(kind: str, *shapes: tuple[int, ...], out: tuple[int, ...], domain: str = "", **attributes: object) -> Op:
    inputs = tuple(Tensor(f"i{n}", s, "FLOAT") for n, s in enumerate(shapes))
    return Op("", domain, kind, attributes, inputs, (Tensor("o", out, "FLOAT"),))


def test_nodes_find_the_micro_benchmark_of_their_kind() -> None:
    assert classify(op("Add", (2, 80, 192), (2, 80, 192), out=(2, 80, 192))) == Class("Add|same|FLOAT", (30720,))
    assert classify(op("Add", (2, 80, 192), (192,), out=(2, 80, 192))) == Class("Add|row|FLOAT", (30720, 192))
    assert classify(op("Min", (480, 64), (480, 1), out=(480, 64))) == Class("Min|column|FLOAT", (30720, 64))
    assert classify(op("Mul", (480, 64), (), out=(480, 64))) == Class("Mul|scalar|FLOAT", (30720,))
    assert classify(op("Mul", (1, 3, 80, 64), (80, 64), out=(1, 3, 80, 64))) == Class("Mul|row|FLOAT", (15360, 5120))
    assert classify(op("Sub", (3, 80, 80), (3, 80, 1), out=(3, 80, 80))) == Class("Sub|column|FLOAT", (19200, 80))
    kept = op("Transpose", (1, 80, 3, 64), out=(1, 3, 80, 64), perm=[0, 2, 1, 3])
    assert classify(kept) == Class("Transpose|kept|FLOAT", (15360, 64))
    turned = op("Transpose", (1, 3, 80, 64), out=(1, 3, 64, 80), perm=[0, 1, 3, 2])
    assert classify(turned) == Class("Transpose|turned|FLOAT", (15360, 64))
    product = op("MatMul", (3, 80, 64), (3, 64, 96), out=(3, 80, 96))
    assert classify(product) == Class("product|computed|FLOAT", (80, 64, 96), 3)
    assert classify(op("Reshape", (5,), (1,), out=(5,))) == Class("Reshape|", (16,))
    assert classify(op("Det", (5, 5), out=())) is None


def test_a_weight_of_a_product_is_told_from_a_computed_one() -> None:
    x, w = Tensor("x", (1, 80, 192), "FLOAT"), Tensor("w", (192, 576), "FLOAT", constant=True, stored=True)
    out = (Tensor("o", (1, 80, 576), "FLOAT"),)
    assert classify(Op("", "", "MatMul", {}, (x, w), out)) == Class("product|constant|FLOAT", (80, 192, 576))
    turned = Tensor("w", (576, 192), "FLOAT")
    found = classify(Op("", "com.microsoft", "FusedMatMul", {"transB": 1}, (x, turned), out))
    assert found == Class("product|computedT|FLOAT", (80, 192, 576))
    unpacked = replace(turned, constant=True)  # of a constant, but in every call: onnxruntime packs initializers only
    assert classify(Op("", "com.microsoft", "FusedMatMul", {"transB": 1}, (x, unpacked), out)) == found


def test_a_convolution_is_told_by_its_kernel_and_channels() -> None:
    x, w = Tensor("x", (1, 32, 64, 64), "FLOAT"), Tensor("w", (16, 32, 3, 3), "FLOAT", constant=True)
    found = classify(Op("", "", "Conv", {"pads": [1] * 4}, (x, w), (Tensor("o", (1, 16, 64, 64), "FLOAT"),)))
    assert found == Class("Conv|3|FLOAT", (4096, 32, 16))


def test_random_values_have_both_signs_where_an_operator_takes_them() -> None:
    x = build(NEG, (1024,))[1]["x"]
    assert (x > 0).any() and (x < 0).any() and (np.abs(x) < 1).all() and x.dtype == np.float32
    assert (build("Sqrt||FLOAT", (1024,))[1]["x"] > 0).all()
