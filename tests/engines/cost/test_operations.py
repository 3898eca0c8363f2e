"""Operations and bytes of a node against counts by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engines.cost.graph import Op, walk
from engines.cost.operations import Work, quantised_bytes, svdq_rank, work
from tests.engines.cost.graphs import away, linear, model, node


def only(made: onnx.ModelProto, **shapes: tuple[int, ...]) -> Op:
    return walk(made, shapes).ops[-1]


def done(made: onnx.ModelProto, **shapes: tuple[int, ...]) -> Work:
    found = work(only(made, **shapes))
    assert found is not None
    return found


def test_matmul() -> None:
    made = model([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 3, 5]}, ["y"], more=[away("w", (5, 7))])
    counted = done(made, x=(2, 3, 5))
    assert counted.operations == 2 * (2 * 3) * 5 * 7
    assert counted.read == 2 * (2 * 3 * 5 + 5 * 7) and counted.written == 2 * 2 * 3 * 7
    assert counted.products[0].m == 6  # the rows of both batches are one product


def test_batched_matmul_broadcasts() -> None:
    made = model([node("MatMul", ["a", "b"], ["y"])], {"a": [4, 1, 3, 5], "b": [2, 5, 7]}, ["y"])
    counted = done(made, a=(4, 1, 3, 5), b=(2, 5, 7))
    assert counted.operations == 2 * (4 * 2) * 3 * 5 * 7 and counted.products[0].batch == 8


@pytest.mark.parametrize(("turned", "shape"), [(0, (5, 7)), (1, (7, 5))])
def test_gemm_with_bias(turned: int, shape: tuple[int, int]) -> None:
    more = [away("w", shape), away("c", (7,))]
    made = model([node("Gemm", ["x", "w", "c"], ["y"], transB=turned)], {"x": [3, 5]}, ["y"], more=more)
    assert done(made, x=(3, 5)).operations == 2 * 3 * 5 * 7 + 3 * 7


@pytest.mark.parametrize("group", [1, 2])
def test_convolution(group: int) -> None:
    made = model(
        [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2], group=group)],
        {"x": [2, 4, 8, 6]}, ["y"], more=[away("w", (6, 4 // group, 3, 3))],
    )  # fmt: skip
    counted = done(made, x=(2, 4, 8, 6))
    outputs = 2 * 6 * 4 * 3
    assert counted.operations == 2 * outputs * (4 // group) * 9
    assert counted.read == 2 * (2 * 4 * 8 * 6 + 6 * 4 // group * 9) and counted.written == 2 * outputs


def test_attention_of_torch_exports_is_two_products_and_a_softmax() -> None:
    nodes = [
        node("MatMul", ["q", "k"], ["s"]), node("Softmax", ["s"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["y"])
    ]  # fmt: skip
    made = model(nodes, {"q": [1, 2, 5, 8], "k": [1, 2, 8, 7], "v": [1, 2, 7, 8]}, ["y"])
    ops = walk(made, {"q": (1, 2, 5, 8), "k": (1, 2, 8, 7), "v": (1, 2, 7, 8)}).ops
    counts = [w.operations for op in ops if (w := work(op)) is not None]
    assert counts == [2 * 2 * 5 * 8 * 7, 5 * 2 * 5 * 7, 2 * 2 * 5 * 7 * 8]


def test_the_attention_operator_counts_the_same() -> None:
    made = model([node("MultiHeadAttention", ["q", "k", "v"], ["y"], "com.microsoft", num_heads=2)],
                 {"q": [1, 5, 16], "k": [1, 7, 16], "v": [1, 7, 16]}, ["y"])  # fmt: skip
    from engines.cost.graph import Tensor

    op = only(made, q=(1, 5, 16), k=(1, 7, 16), v=(1, 7, 16))
    op = Op(op.name, op.domain, op.kind, op.attributes, op.inputs, (Tensor("y", (1, 5, 16), "FLOAT16"),))
    counted = work(op)
    assert counted is not None
    assert counted.operations == 2 * (2 * 2 * 5 * 8 * 7) + 5 * 2 * 5 * 7


def test_a_four_bit_layer_multiplies_padded_channels_and_its_branch() -> None:
    counted = done(linear(m=5, k=100, n=48, rank=32), x=(5, 100))
    main, down, up = counted.products
    assert (main.m, main.k, main.n, main.left, main.right) == (5, 128, 48, "INT4", "INT4")
    assert (down.m, down.k, down.n, down.left) == (5, 100, 32, "FLOAT16")
    assert (up.m, up.k, up.n) == (5, 32, 48)
    assert counted.read == 2 * 5 * 100 + 100 * 48 // 2 + 2 * (48 * 2 + 100 + 100 * 32 + 32 * 48 + 48)
    assert counted.written == 2 * 5 * 48
    assert counted.elementwise == 6 * 5 * 100 + 5 * 48


def test_a_layer_without_branch_or_activation_codes() -> None:
    op = only(linear(rank=0, act_bits=16), x=(5, 100))
    counted = work(op)
    assert counted is not None and len(counted.products) == 1 and counted.products[0].left == "FLOAT16"
    assert svdq_rank(op) == 0 and quantised_bytes(op) == 0


def test_what_a_four_bit_layer_needs_between_its_kernels() -> None:
    op = only(linear(m=5, k=100, rank=32), x=(5, 100))
    assert quantised_bytes(op) == 5 * 128 // 2 + 5 * 2 * 2 + 4 * 5 * 32


def test_an_operator_that_is_not_counted_is_none_and_not_zero() -> None:
    made = model([node("Odd", ["x"], ["y"], "strange")], {"x": [2]}, ["y"])
    assert work(only(made, x=(2,))) is None
    made = model([node("Det", ["x"], ["y"])], {"x": [2, 2]}, ["y"], kind=TensorProto.FLOAT)
    assert work(only(made, x=(2, 2))) is None


def test_a_view_is_free_and_a_copy_is_not() -> None:
    made = model([node("Reshape", ["x", "s"], ["y"])], {"x": [4, 4]}, ["y"], {"s": np.array([16])})
    assert done(made, x=(4, 4)) == Work(view=True)
    made = model([node("Transpose", ["x"], ["y"], perm=[1, 0])], {"x": [4, 3]}, ["y"])
    assert done(made, x=(4, 3)) == Work(read=24, written=24)


def test_a_lookup_reads_what_it_takes_and_not_the_table() -> None:
    ids = np.array([1, 2, 3])
    made = model([node("Gather", ["w", "i"], ["y"])], {}, ["y"], {"i": ids}, more=[away("w", (1000, 8))])
    assert done(made) == Work(read=2 * 3 * 8 + 8 * 3, written=2 * 3 * 8)
