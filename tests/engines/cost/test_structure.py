"""What onnxruntime holds of a graph beside weights and activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.apart import Apart
from engines.cost import structure
from engines.cost.structure import KINDS, LONG, Nodes, Structure, chain, nodes


def test_nodes_are_told_apart_by_their_width_and_function_bodies_count_by_their_calls(tmp_path: Path) -> None:
    half, value = TensorProto.FLOAT16, helper.make_tensor_value_info
    body = [helper.make_node("Cast", ["a"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Neg", ["wide"], ["negative"]),
            helper.make_node("Cast", ["negative"], ["b"], to=half)]  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("svdq", 1)]
    function = helper.make_function("svdq", "SvdqLinear", ["a", "w"], ["b"], body, opsets[:1])
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float16), "weight")
    wide = numpy_helper.from_array(np.zeros(8, np.float32), "wide")  # nobody widens it
    listed = [
        helper.make_node("MatMul", ["x", "weight"], ["m"]),
        helper.make_node("SvdqLinear", ["m", "weight"], ["s"], domain="svdq"),
        helper.make_node("SvdqLinear", ["s", "weight"], ["t"], domain="svdq"),
        helper.make_node("Shape", ["ids"], ["size"]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    graph = helper.make_graph(
        listed, "g", [value("x", half, [2, 4]), value("ids", TensorProto.INT64, [3])],
        [value("y", half, [2, 4]), value("size", TensorProto.INT64, [1])], [weight, wide],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    onnx.save(made, tmp_path / "m.onnx")
    found = nodes(tmp_path / "m.onnx", {"x": (2, 4), "ids": (3,)})
    kinds = frozenset({"MatMul", "Shape", "Relu", "Cast", "Neg"})
    assert found == Nodes(halves=2, other=1 + 2 * 3, kinds=kinds, kept_bytes=32)
    assert Structure(session=1e6, half=10.0, other=3.0, kind=50.0).of(found) == 2 * 10 + 7 * 3


def test_the_chains_give_what_a_node_and_an_operator_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    session, half, other, kind = 7_000_000, 900, 300, 4_000

    class Pretended:
        def __init__(self, module: str, arguments: list[str], what: str) -> None:
            self.graph = onnx.load(arguments[0]).graph

        def __enter__(self) -> Pretended:
            return self

        def __exit__(self, *_: object) -> None: ...

        def result(self) -> dict[str, Any]:
            wide = self.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
            more = len(self.graph.node) - 1
            operators = len({n.op_type for n in self.graph.node}) - 1
            return {"bytes": session + more * (other if wide else half) + operators * kind}

    monkeypatch.setattr(structure, "Apart", Pretended)
    assert structure.measure() == Structure(session, half, other, kind)


def test_a_node_of_16_bits_really_takes_more_and_none_is_free(tmp_path: Path) -> None:
    grown = {}
    for half in (False, True):
        path = tmp_path / "chain.onnx"
        path.write_bytes(chain(KINDS, LONG, half))
        with Apart("engines.cost.structure", [str(path)], "Measuring") as apart:
            grown[half] = apart.result()
    (tmp_path / "one.onnx").write_bytes(chain(KINDS[:1], 1, False))
    with Apart("engines.cost.structure", [str(tmp_path / "one.onnx")], "Measuring") as apart:
        one = apart.result()
    count = len(KINDS) * LONG
    assert one["bytes"] + 1000 * count < grown[False]["bytes"] < grown[True]["bytes"] - 2000 * count
    assert all(0 < g["opened"] <= g["bytes"] for g in (one, *grown.values()))
