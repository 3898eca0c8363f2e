"""Time of a graph on a GPU from its counts and the target's row: every kernel takes the longer of computing and moving.

Kernels: a matrix product with the elementwise nodes behind it, a chain of elementwise nodes and norms, an SvdqLinear.
The band comes from three sets of assumptions, not from a factor on the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.cost.graph import Graph, Op
from engines.cost.operations import COPIES, VIEWS, Product, Work, work
from engines.targets import Target

# Share of the tensor cores' rate that issue slots leave to the multiplication of svdq::SvdqLinear, counted in its
# machine code for sm_87 (docs/roofline.md: m128n128 and m256n128): nobody measured it on a device.
ISSUE_BOUND = {4: 0.54, 8: 0.83}
UNVERIFIED = 1.25  # a rate with one source only may be off by this much either way
_RATES = ("fp16_tflops", "int8_tops", "int4_tops", "bandwidth_gb_s")


@dataclass(frozen=True)
class Scenario:
    """What is assumed of a device beside its row.

    Shares: `tensor` of the tensor cores' rate that TensorRT's 16-bit kernels reach, `own` of ISSUE_BOUND that the
    4-bit kernels reach, `bandwidth` of the memory's. `launch_s` per kernel in a CUDA graph. `fused`: whether
    elementwise nodes share kernels.
    """

    tensor: float
    own: float
    bandwidth: float
    launch_s: float
    fused: bool = True


BEST = Scenario(0.85, 1.0, 0.92, 1e-6)
EXPECTED = Scenario(0.6, 1.0, 0.8, 3e-6)
WORST = Scenario(0.35, 0.5, 0.6, 6e-6, fused=False)


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one: their work without what stays inside, by which `launches` kernels."""

    ops: tuple[Op, ...]
    products: tuple[Product, ...]
    nbytes: int
    launches: int = 1


def kernels(graph: Graph, fused: bool = True) -> tuple[list[Kernel], set[str]]:
    """The graph's kernels in order, and the names of the tensors that stay inside one and are never written."""
    counted = [(op, work(op)) for op in graph.ops if not op.constant]
    alias: dict[str, str] = {}
    for op, _ in counted:
        if op.kind in VIEWS and op.inputs and op.inputs[0]:
            alias.update({t.name: alias.get(op.inputs[0].name, op.inputs[0].name) for t in op.outputs})
    running = [(op, done) for op, done in counted if done is not None and not done.view]
    written_by: dict[str, int] = {}
    readers: dict[str, int] = {}
    for i, (op, _) in enumerate(running):
        for t in op.inputs:
            if t is not None:
                name = alias.get(t.name, t.name)
                readers[name] = readers.get(name, 0) + 1
        written_by.update({t.name: i for t in op.outputs})
    kept = {alias.get(t.name, t.name) for t in graph.outputs}
    group = list(range(len(running)))
    if fused:
        for i, (op, done) in enumerate(running):
            for t in op.inputs:
                name = alias.get(t.name, t.name) if t is not None else ""
                if name in written_by and readers[name] == 1 and name not in kept:
                    before = running[written_by[name]]
                    if _joins(op, done, before[0], before[1]):
                        group[i] = group[written_by[name]]
                        break
    return _kernels(running, group, alias, kept)


def _joins(op: Op, done: Work, before: Op, earlier: Work) -> bool:
    """Whether the node runs in the kernel of the one before: behind a product, or in a chain of elementwise nodes."""
    if done.products or before.kind == "SvdqLinear":
        return False
    if earlier.products:
        return op.kind not in COPIES or op.kind == "Cast"
    return True


def _kernels(
    running: list[tuple[Op, Work]], group: list[int], alias: dict[str, str], kept: set[str]
) -> tuple[list[Kernel], set[str]]:
    members: dict[int, list[int]] = {}
    for i, g in enumerate(group):
        members.setdefault(g, []).append(i)
    where = {t.name: g for i, g in enumerate(group) for t in running[i][0].outputs}
    outside: set[str] = set(kept)  # tensors that a kernel other than their own reads
    for i, g in enumerate(group):
        outside.update(
            n for t in running[i][0].inputs if t is not None and where.get(n := alias.get(t.name, t.name)) != g
        )
    found, inner = [], set()
    for g, indices in members.items():
        moved = 0
        seen: set[str] = set()
        products: list[Product] = []
        for i in indices:
            op, done = running[i]
            products += done.products
            if done.read < sum(t.nbytes for t in op.inputs if t):  # a lookup reads what it takes, not the table
                moved += done.read
            else:
                for t in op.inputs:
                    name = alias.get(t.name, t.name) if t is not None else ""
                    if t is not None and where.get(name) != g and name not in seen:
                        seen.add(name)
                        moved += t.nbytes
            for t in op.outputs:
                if t.name in outside:
                    moved += t.nbytes
                else:
                    inner.add(t.name)
        ops = tuple(running[i][0] for i in indices)
        two = any(o.kind == "SvdqLinear" and (o.attributes["act_bits"] < 16 or len(o.inputs) == 7) for o in ops)
        found.append(Kernel(ops, tuple(products), moved, 2 if two else 1))
    return found, inner


def seconds(run: list[Kernel], target: Target, scenario: Scenario) -> float:
    """Seconds of one call of a graph with these kernels. The target's row must have rates and a bandwidth."""
    total = 0.0
    for kernel in run:
        own = any(op.kind == "SvdqLinear" for op in kernel.ops)
        computing = sum(p.operations / _rate(p, target, scenario, own) for p in kernel.products)
        assert target.bandwidth_gb_s is not None
        moving = kernel.nbytes / (target.bandwidth_gb_s * 1e9 * scenario.bandwidth)
        total += max(computing, moving) + kernel.launches * scenario.launch_s
    return total


def native_int4(target: Target) -> bool:
    """Whether the tensor cores multiply 4-bit integers: from compute capability 8.0 to 8.9."""
    return target.int4_tops is not None and target.sm is not None and 80 <= target.sm < 90


def _rate(product: Product, target: Target, scenario: Scenario, own: bool) -> float:
    """Operations per second. 4-bit products without native instructions run on 8 bits; float32 at half of 16 bits."""
    integers = product.left in ("INT4", "UINT4", "INT8", "UINT8")
    if integers and product.right == "INT4":
        four = product.left.endswith("INT4") and native_int4(target)
        peak = target.int4_tops if four else target.int8_tops
        assert peak is not None
        return peak * 1e12 * ISSUE_BOUND[4 if four else 8] * scenario.own
    assert target.fp16_tflops is not None
    half = 0.5 if product.left == "FLOAT" else 1.0
    return target.fp16_tflops * 1e12 * half * scenario.tensor


def unverified(target: Target) -> list[str]:
    """The rates of the row that have one source only."""
    return [name for name in _RATES if name in target.unverified]


def assumptions(target: Target) -> list[str]:
    """What `seconds` takes for granted, as sentences with the expected figure and the band's ends."""
    e, b, w = EXPECTED, BEST, WORST
    bit = "4-bit" if native_int4(target) else "8-bit (no native 4-bit instructions)"
    issue = ISSUE_BOUND[4 if native_int4(target) else 8]
    said = [
        f"16-bit products reach {e.tensor:.0%} of the tensor cores' rate ({b.tensor:.0%} at best, {w.tensor:.0%} at "
        "worst): assumed, not measured.",
        f"4-bit layers run in the plugin at the {bit} rate times {issue:.0%}, the bound by issue slots counted in the "
        f"machine code for sm_87 (docs/roofline.md); at worst {w.own:.0%} of that.",
        f"Memory gives {e.bandwidth:.0%} of its bandwidth ({b.bandwidth:.0%} to {w.bandwidth:.0%}); a kernel takes "
        f"{e.launch_s * 1e6:.0f} µs to launch ({b.launch_s * 1e6:.0f} to {w.launch_s * 1e6:.0f}).",
        "Elementwise nodes and norms share kernels with their neighbours; at worst each node is a kernel of its own.",
        "Host work (tokeniser, scheduler, picture) is not counted.",
    ]
    if names := unverified(target):
        said.append(f"Unverified figures of {target.title}: {', '.join(names)}; they widen the band by {UNVERIFIED}.")
    return said
