"""Peak memory by liveness against brute force."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.cost.graph import Graph, Op, Tensor
from engines.cost.liveness import ALIGNMENT, peak_bytes


def tensor(name: str, blocks: int, constant: bool = False) -> Tensor:
    return Tensor(name, (blocks * ALIGNMENT,), "UINT8", constant)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Ops that read any earlier tensors; some are views; any tensors are outputs."""
    inputs = [tensor(f"in{i}", draw(st.integers(1, 5))) for i in range(draw(st.integers(1, 3)))]
    there, ops = list(inputs), []
    for i in range(draw(st.integers(1, 9))):
        read = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
        view = draw(st.booleans()) and draw(st.booleans())
        out = Tensor(f"t{i}", read[0].shape, "UINT8") if view else tensor(f"t{i}", draw(st.integers(1, 5)))
        ops.append(Op(f"op{i}", "", "Reshape" if view else "Add", {}, tuple(read), (out,)))
        there.append(out)
    outputs = draw(st.lists(st.sampled_from(there), min_size=1, max_size=2, unique=True))
    return Graph(tuple(ops), tuple(inputs), tuple(outputs), ())


def brute(graph: Graph) -> int:
    """Alive while op i runs: what was written by then (or then) and is read then or later, or is an output."""
    memory = {t.name: t.name for t in graph.inputs}  # a name → the tensor that holds its memory
    sizes = {t.name: t.nbytes for t in graph.inputs}
    written = dict.fromkeys(sizes, -1)
    for i, op in enumerate(graph.ops):
        (out,) = op.outputs
        if op.kind == "Reshape":
            assert op.inputs[0] is not None
            memory[out.name] = memory[op.inputs[0].name]
        else:
            memory[out.name], sizes[out.name], written[out.name] = out.name, out.nbytes, i
    most = 0
    for i in range(-1, len(graph.ops)):
        alive = set()
        for name in sizes:
            if written[name] > i:
                continue
            later = any(memory[t.name] == name for op in graph.ops[max(i, 0) :] for t in op.inputs if t)
            if later or written[name] == i or any(memory[t.name] == name for t in graph.outputs):
                alive.add(name)
        most = max(most, sum(sizes[n] for n in alive))
    return most


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_it_is_what_brute_force_finds(graph: Graph) -> None:
    assert peak_bytes(graph) == brute(graph)


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    a, b, c = (tensor(n, 1) for n in "abc")
    ops = (Op("1", "", "Neg", {}, (a,), (b,)), Op("2", "", "Neg", {}, (b,), (c,)))
    assert peak_bytes(Graph(ops, (a,), (c,), ())) == 2 * ALIGNMENT


def test_what_stays_inside_a_kernel_takes_no_memory() -> None:
    a, b, c = tensor("a", 1), tensor("b", 9), tensor("c", 1)
    ops = (Op("1", "", "Neg", {}, (a,), (b,)), Op("2", "", "Neg", {}, (b,), (c,)))
    assert peak_bytes(Graph(ops, (a,), (c,), ()), {"b"}, [ops]) == 2 * ALIGNMENT


def test_what_is_computed_of_weights_is_a_weight() -> None:
    a, w, d = tensor("a", 1), tensor("w", 4, True), tensor("d", 8, True)
    y = tensor("y", 1)
    ops = (Op("1", "", "DequantizeLinear", {}, (w,), (d,)), Op("2", "", "MatMul", {}, (a, d), (y,)))
    graph = Graph(ops, (a,), (y,), (w,))
    assert peak_bytes(graph) == 2 * ALIGNMENT


def test_sizes_are_rounded_to_what_allocators_give() -> None:
    a, b = Tensor("a", (1,), "UINT8"), Tensor("b", (65,), "UINT8")
    assert peak_bytes(Graph((Op("1", "", "Neg", {}, (a,), (b,)),), (a,), (b,), ())) == 3 * ALIGNMENT
