"""The canonical form of linears."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from passes.clean import CanonicalLinears, clean
from passes.linear import find_linears
from tests.passes.graphs import GraphBuilder, ops, run


def gemm_model(**attributes: object):
    b = GraphBuilder()
    shape = (8, 4) if attributes.get("transB") else (4, 8)
    b.weight("fc.weight", b.rng.standard_normal(shape))
    b.weight("fc.bias", b.rng.standard_normal(8))
    b.rename(b.node("Gemm", ["x", "fc.weight", "fc.bias"], **attributes), "y")
    return b.model({"x": ["B", 4]}, {"y": ["B", 8]})


def test_a_gemm_with_transposed_weight_becomes_transpose_matmul_add_and_computes_the_same(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    before = run(gemm_model(transB=1), tmp_path, x=x)
    model = gemm_model(transB=1)
    assert CanonicalLinears()(model).modified
    assert ops(model) == {"Transpose": 1, "MatMul": 1, "Add": 1}
    np.testing.assert_allclose(run(model, tmp_path, x=x), before, rtol=1e-6, atol=1e-6)
    (linear,) = find_linears(model.graph)
    assert (linear.name, linear.n, linear.k, linear.bias.name) == ("fc", 8, 4, "fc.bias")


def test_gemms_that_are_no_linear_are_left_alone() -> None:
    for attributes in ({}, {"transB": 1, "alpha": 0.5}, {"transB": 1, "beta": 2.0}):
        model = gemm_model(**attributes)
        assert not CanonicalLinears()(model).modified
        assert ops(model) == {"Gemm": 1}


def test_clean_removes_nodes_that_nothing_reads() -> None:
    b = GraphBuilder()
    b.rename(b.linear("fc", "x", 4, 8), "y")
    b.node("Relu", ["x"])
    model = b.model({"x": ["B", 4]}, {"y": ["B", 8]})
    for p in clean():
        model = p(model).model
    assert "Relu" not in ops(model)


def test_an_add_that_is_not_the_bias_is_not_taken_for_it() -> None:
    b = GraphBuilder()
    product = b.linear("fc", "x", 4, 4, bias=False)
    b.rename(b.node("Add", [product, "x"]), "y")
    model = b.model({"x": ["B", 4]}, {"y": ["B", 4]})
    (linear,) = find_linears(model.graph)
    assert linear.bias is None and linear.add is None


def test_a_single_number_that_is_added_is_no_bias() -> None:
    b = GraphBuilder()
    product = b.linear("fc", "x", 4, 4, bias=False)
    b.rename(b.node("Add", [product, b.weight("one", np.ones(1))]), "y")
    (linear,) = find_linears(b.model({"x": ["B", 4]}, {"y": ["B", 4]}).graph)
    assert linear.bias is None


def test_a_weight_that_is_not_transposed_makes_no_linear() -> None:
    b = GraphBuilder()
    b.weight("fc.weight", b.rng.standard_normal((4, 4)))
    b.rename(b.node("MatMul", ["x", b.node("Transpose", ["fc.weight"], perm=[0, 1])]), "y")
    assert find_linears(b.model({"x": ["B", 4]}, {"y": ["B", 4]}).graph) == []
