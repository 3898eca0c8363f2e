"""Where onnxruntime's plan puts activations."""

from __future__ import annotations

from engines.cost.buffers import ALIGNMENT, places, steps
from engines.cost.graph import Graph, Op, Tensor

A = ALIGNMENT


def tensor(name: str, size: int) -> Tensor:
    return Tensor(name, (size,), "UINT8")


def graph(*nodes: tuple[str, str, str], sizes: dict[str, int]) -> Graph:
    """Nodes (kind, input, output) with the last output given back."""
    known = {n: tensor(n, s) for n, s in sizes.items()}
    ops = tuple(Op("", "", kind, {}, (known[x],), (known[y],)) for kind, x, y in nodes)
    return Graph(ops, (known[nodes[0][1]],), (known[nodes[-1][2]],), ())


def test_two_places_are_enough_for_a_chain() -> None:
    nodes = [("Transpose", f"t{i}", f"t{i + 1}") for i in range(4)]
    found = places(graph(*nodes, sizes={f"t{i}": A for i in range(5)}))
    assert found == {"t1": 0, "t2": A, "t3": 0, "t4": A}  # the input is the caller's


def test_the_smallest_gap_that_is_wide_enough_is_taken() -> None:
    sizes = {"x": A, "a": 3 * A, "b": A, "c": 2 * A, "d": A, "e": 2 * A, "f": A}
    x, *rest = (tensor(n, s) for n, s in sizes.items())
    a, b, c, d, e, f = rest
    ops = (
        *(Op("", "", "Transpose", {}, (x,), (t,)) for t in (a, b, c, d)),  # at 0, 3, 4 and 6
        Op("", "", "Concat", {}, (a, c), (e,)),  # behind; 0 to 3 and 4 to 6 are free afterwards
        Op("", "", "Transpose", {}, (b,), (f,)),
        Op("", "", "Concat", {}, (d, e, f), (tensor("y", A),)),
    )
    found = places(Graph(ops, (x,), (), ()))
    assert found["e"] == 7 * A and found["f"] == 4 * A


def test_elementwise_nodes_and_views_stay_where_their_input_is() -> None:
    nodes = [("Transpose", "x", "a"), ("Sigmoid", "a", "b"), ("Reshape", "b", "c"), ("Transpose", "c", "y")]
    made = graph(*nodes, sizes=dict.fromkeys("xabcy", A))
    found, owner = steps(made)
    assert found[1].over == {"b": "a"} and not found[1].taken and owner == {"c": "b"}
    assert places(made) == {"a": 0, "b": 0, "c": 0, "y": A}


def test_an_input_that_is_read_again_is_not_written_over() -> None:
    x, a, b, y = (tensor(n, A) for n in "xaby")
    ops = (Op("", "", "Transpose", {}, (x,), (a,)), Op("", "", "Sigmoid", {}, (a,), (b,)),
           Op("", "", "Mul", {}, (a, b), (y,)))  # fmt: skip
    found, _ = steps(Graph(ops, (x,), (y,), ()))
    assert found[1].taken == (("b", A),) and found[2].over == {"y": "a"}
