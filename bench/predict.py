"""Predicted against measured on this CPU: python -m bench.predict out/shapes-dit out/shapes-unet

Latency of every component and of an image of the given artifacts, and of a block in FLUX's shape at three sizes, made
here with random weights. Micro-benchmarks and models are measured in turn in one run, with one thread, which is timed
by its own CPU time (other processes do not lengthen that; on a quiet machine it is the latency, shown beside it). Both
are told at one pace of the machine, which is looked at before and after each measurement (engines/cost/pace.py).
Memory: growth of a fresh process that runs one graph. Ends with 1 where a latency is off by more than 25 %, or memory
by more than 30 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without an installation
from artifact.manifest import Artifact  # noqa: E402
from engines import load, machine  # noqa: E402
from engines.apart import Apart  # noqa: E402
from engines.cost import cpu, host, structure  # noqa: E402
from engines.cost.arena import grown_bytes  # noqa: E402
from engines.cost.ceilings import Ceilings  # noqa: E402
from engines.cost.graph import Graph  # noqa: E402
from engines.cost.pace import Pace  # noqa: E402
from engines.cost.prediction import CPU_BAND, MEMORY_BAND, calls_per_image  # noqa: E402
from engines.session import Session  # noqa: E402
from engines.shapes import Input, graph_inputs, input_shapes  # noqa: E402

THREADS = 1
BLOCKS = ((768, 1024), (1536, 512), (3072, 256))  # width, tokens
HEAD = 128  # channels of an attention head, as in FLUX
RANK = 32
PARTS = 4  # of a round, each with some micro-benchmarks and some models
COMPARED = ("fp16", "svdq-int4")
SHORT_S, SHORT_RUNS = 0.03, 5  # a model that takes less is run so often for a measurement, after a run that warms up


@dataclass
class Case:
    """Something that is measured: `run` does it once. `graph` None: an image, the sum of `parts` by their calls and of
    the `host` work in so many `steps`."""

    name: str
    run: Callable[[], object]
    graph: Graph | None = None
    parts: list[tuple[Case, int]] = field(default_factory=list)
    host: host.Host | None = None
    steps: int = 0
    model: Path | None = None
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    taken: list[float] = field(default_factory=list)  # a run in units of the pace, every round
    by_clock: list[float] = field(default_factory=list)  # seconds of every run

    def measured_ms(self, unit: float) -> float:
        """The median of all rounds, at the pace of the micro-benchmarks."""
        return float(1e3 * unit * np.median(self.taken))

    @property
    def wall_ms(self) -> float:
        """The median by the clock, whatever the pace was."""
        return float(1e3 * np.median(self.by_clock))

    def measure(self, runs: int, pace: Pace) -> None:
        """A round: `runs` measurements, each at a steady pace."""
        for _ in range(runs):
            self.taken.append(float(pace.relative(self.once)))

    def once(self) -> float:
        """Seconds of CPU time of a run: the median of some short ones that follow another, or of one that is long."""
        taken: list[float] = []
        for i in range(1 + SHORT_RUNS):
            wall, own = time.perf_counter(), time.thread_time()
            self.run()
            own, wall = time.thread_time() - own, time.perf_counter() - wall
            if i or own > SHORT_S:
                taken.append(own)
                self.by_clock.append(wall)
            if sum(taken) > SHORT_S:
                break
        return float(np.median(taken))

    def predicted_ms(self, ceilings: Ceilings) -> float:
        """By the micro-benchmarks."""
        if self.graph is None:
            assert self.host is not None
            between = host.seconds(ceilings, self.host.key, self.steps) or 0.0
            return sum(count * part.predicted_ms(ceilings) for part, count in self.parts) + 1e3 * between
        return 1e3 * cpu.seconds(self.graph, ceilings)[0]


def random_feeds(inputs: list[Input], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        i.name: (0.5 * rng.standard_normal(shapes[i.name])).astype(i.dtype)
        if i.dtype.kind == "f"
        else np.ones(shapes[i.name], i.dtype)
        for i in inputs
    }


def graph_case(name: str, model: Path, shapes: dict[str, tuple[int, ...]]) -> Case:
    """A graph on random inputs."""
    session = Session(model, name, THREADS, check_finite=False).open()
    feeds = random_feeds(graph_inputs(model), shapes)
    return Case(name, lambda: session.run(feeds), cpu.graph(model, shapes), model=model, feeds=feeds)


def artifact_cases(root: Path) -> list[Case]:
    """Components and image of an artifact's presets. Graphs that presets share are measured once."""
    import torch

    torch.set_num_threads(THREADS)
    artifact = Artifact.open(root, verify=False)
    name = artifact.manifest["name"]
    found: dict[Path, Case] = {}
    images = []
    generation = artifact.manifest["generation"]
    counts = calls_per_image(artifact, generation["num_inference_steps"])
    size = 1, generation["height"], generation["width"]
    work = host.Host(artifact, artifact.manifest["presets"][0], size, counts, THREADS)
    for preset in (p for p in COMPARED if p in artifact.manifest["presets"]):
        parts = []
        for component, calls in counts.items():
            model = artifact.model(component, preset)
            if model not in found:
                title = f"{name} {component}" + ("" if "fp16" in model.name and preset != "fp16" else f" {preset}")
                found[model] = graph_case(title, model, input_shapes(artifact, component, model))
            parts.append((found[model], calls))
        pipe = load(root, preset, THREADS, verify=False)
        prompt = artifact.manifest["references"]["prompts"][0]
        images.append(
            Case(f"{name} image {preset}", lambda pipe=pipe, prompt=prompt: pipe(prompt), parts=parts, host=work,
                 steps=generation["num_inference_steps"])
        )  # fmt: skip
    return [*found.values(), *images]


def block(width: int) -> Any:
    """An ir.Model in the shape of FLUX's single block, with random weights and dynamic batch and tokens: modulation,
    layer norm, attention with normalised heads beside an MLP, and one projection of both."""
    import onnx
    import onnx_ir as ir
    from onnx import helper, numpy_helper

    rng, nodes, weights = np.random.default_rng(0), [], {}

    def node(kind: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"v{len(nodes)}"], name=f"{kind}_{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    def weight(name: str, value: np.ndarray) -> str:
        weights[name] = value
        return name

    def half(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) / math.sqrt(shape[-1])).astype(np.float16)

    def linear(name: str, x: str, k: int, n: int) -> str:
        product = node("MatMul", x, node("Transpose", weight(f"{name}.weight", half(n, k)), perm=[1, 0]))
        return node("Add", product, weight(f"{name}.bias", half(n)))

    ones = weight("ones", np.ones(width, np.float16))
    emb = node("Unsqueeze", linear("norm.linear", "emb", width, 3 * width), weight("axis", np.array([1], np.int64)))
    third = weight("third", np.full(3, width, np.int64))
    nodes.append(helper.make_node("Split", [emb, third], ["shift", "scale", "gate"], name="split", axis=2))
    one = weight("one", np.ones((), np.float16))
    x = node("LayerNormalization", "x", ones, axis=-1, epsilon=1e-6)
    x = node("Add", node("Mul", x, node("Add", "scale", one)), "shift")
    split = weight("heads", np.array([0, 0, width // HEAD, HEAD], np.int64))
    heads = {n: node("Reshape", linear(f"attn.to_{n}", x, width, width), split) for n in "qkv"}
    q, k = (node("LayerNormalization", heads[n], weight(f"{n}.norm", np.ones(HEAD, np.float16)), axis=-1) for n in "qk")
    q = node("Mul", node("Transpose", q, perm=[0, 2, 1, 3]), weight("root", np.array(HEAD**-0.5, np.float16)))
    scores = node("MatMul", q, node("Transpose", k, perm=[0, 2, 3, 1]))
    mixed = node("MatMul", node("Softmax", scores, axis=-1), node("Transpose", heads["v"], perm=[0, 2, 1, 3]))
    joined = weight("joined", np.array([0, 0, width], np.int64))
    attention = node("Reshape", node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    mlp = node("Gelu", linear("proj_mlp", x, width, 4 * width), approximate="tanh")
    out = linear("proj_out", node("Concat", attention, mlp, axis=2), 5 * width, width)
    nodes.append(helper.make_node("Add", ["x", node("Mul", out, "gate")], ["y"], name="residual"))
    kind = onnx.TensorProto.FLOAT16
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "block",
        [value("x", kind, ["batch", "tokens", width]), value("emb", kind, ["batch", width])],
        [value("y", kind, ["batch", "tokens", width])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def four_bit(model: Any) -> Any:
    """The block in svdq-int4's portable form. The numbers are random: only the time matters."""
    from passes.layers import find_layers, quantised
    from passes.policy import Policy
    from passes.presets import PRESETS, layered
    from passes.solved import Quantised
    from passes.solver import SolvedLayer
    from plugins.svdq_linear.spec import group_count

    policy = Policy(quantise=("attn.*", "proj_*"), weight_only=("norm.*",))
    preset, rng, solved = PRESETS["svdq-int4"], np.random.default_rng(1), {}
    half = np.float16
    for layer in quantised(find_layers(layered(policy)(model.clone()).model.graph, policy)):
        recipe = preset.recipe(layer, "float16", rank=RANK)
        k, n, r = layer.k, layer.n, RANK if recipe.rank else 0
        solved[layer.name] = Quantised(
            recipe,
            SolvedLayer(
                inv_smooth=np.ones(k, half), down=np.full((k, r), 1e-3, half), up=np.full((r, n), 1e-3, half),
                qweight=rng.integers(-7, 8, (n, k), np.int8),
                wscale=np.full((n, group_count(k, recipe.group_size)), 0.1 / math.sqrt(k), half),
                bias=np.zeros(n, half), error=0.0, alpha=0.0, beta=0.0, rounds=0,
            ),
        )  # fmt: skip
    return preset.apply(model, policy, solved)


def block_cases(folder: Path) -> list[Case]:
    """The block in 16 bits and in 4, at every size."""
    from passes.policy import Policy
    from passes.presets import PRESETS
    from passes.write import write_model

    cases = []
    for width, tokens in BLOCKS:
        shapes = {"x": (1, tokens, width), "emb": (1, width)}
        for preset in COMPARED:
            made = (
                four_bit(block(width)) if preset == "svdq-int4" else PRESETS["fp16"].apply(block(width), Policy(), {})
            )
            path = folder / f"{preset}-{width}.onnx"
            write_model(made, path)
            cases.append(graph_case(f"block {width} wide, {tokens} tokens {preset}", path, shapes))
    return cases


def grown(case: Case, folder: Path) -> dict[str, int]:
    """Bytes by which a fresh process grows that runs the graph: at its peak, and once it was opened."""
    np.savez(folder / "feeds.npz", allow_pickle=False, **case.feeds)
    words = [str(case.model), str(folder / "feeds.npz")]
    with Apart("engines.cost.structure", words, f"Measuring {case.name}") as apart:
        return apart.result()


def memory(cases: list[Case], folder: Path) -> tuple[list[dict[str, Any]], float]:
    """Print what each graph takes beside a session of one node, and what chains of tiny nodes say that it takes; the
    rows, and how far the farthest is off."""
    held = structure.measure()
    title, rows = "memory, MB, beside a session of one node", []
    print(f"\n{title:46}{'predicted':>10}{'peak':>10}{'opened':>10}{'off':>8}")
    for c in (c for c in cases if c.graph is not None):
        assert c.graph is not None and c.model is not None
        nodes = structure.nodes(c.model, {name: v.shape for name, v in c.feeds.items()})
        own = held.of(nodes) + held.kind * len(nodes.kinds)
        predicted = c.graph.weight_bytes + nodes.kept_bytes + grown_bytes(c.graph) + own
        found = {k: v - held.session for k, v in grown(c, folder).items()}
        rows.append({"name": c.name, "predicted_bytes": predicted, "peak_bytes": found["bytes"]})
        figures = "".join(f"{v / 1e6:10.2f}" for v in (predicted, found["bytes"], found["opened"]))
        print(f"{c.name:46}{figures}{predicted / found['bytes'] - 1:+8.0%}")
    print(f"{'a session of one node':46}{'':10}{held.session / 1e6:10.2f}")
    each = f"{held.half / 1e3:.1f} a node of 16 bits, {held.other / 1e3:.1f} another"
    print(f"kB: {each}, {held.kind / 1e3:.0f} the code of an operator")
    return rows, max(abs(r["predicted_bytes"] / r["peak_bytes"] - 1) for r in rows)


def latency(cases: list[Case], rounds: int, runs: int, before: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Measure ceilings and cases in turn and print both; the rows, and how far the farthest is off."""
    works = list({c.host.key: c.host for c in cases if c.host is not None}.values())
    ceilings = Ceilings(THREADS)
    short = [c for c in cases if c.graph is not None and "block" not in c.name]
    long = [c for c in cases if c.graph is None or "block" in c.name]
    needed = sorted(cpu.keys(c.graph for c in cases if c.graph is not None))
    for i in range(rounds):
        print(f"round {i + 1} of {rounds}", file=sys.stderr)
        for part in range(PARTS):  # the machine's speed drifts: neither side may have the better minute
            ceilings.measure(needed[part::PARTS], rounds=1)
            for work in works[part::PARTS]:
                work.measure(ceilings)
            for case in [*short, *long[part::PARTS]]:
                case.measure(runs, ceilings.pace)
    after = machine.describe()
    print(f"{before['cpu']}, {THREADS} thread, load {before['load_1min']} to {after['load_1min']}, {after['date']}")
    print(f"\n{'latency, ms':46}{'predicted':>10}{'measured':>10}{'by clock':>10}{'off':>8}")
    rows, worst = [], 0.0
    ceilings.settle()
    unit = ceilings.pace.usual
    for c in cases:
        predicted, measured = c.predicted_ms(ceilings), c.measured_ms(unit)
        off = predicted / measured - 1
        worst = max(worst, abs(off))
        rows.append({"name": c.name, "predicted_ms": predicted, "cpu_ms": measured, "wall_ms": c.wall_ms})
        print(f"{c.name:46}{predicted:10.2f}{measured:10.2f}{c.wall_ms:10.2f}{off:+8.0%}")
    slow, fast = (np.quantile(ceilings.pace.looks, q) / unit for q in (0.95, 0.05))
    print(f"the machine's pace: {1e6 * unit:.0f} us, 90 % of all looks within {fast:.2f} and {slow:.2f} times that")
    return rows, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=4, help="of micro-benchmarks and models in turn")
    parser.add_argument("--runs", type=int, default=4, help="of every model in a round")
    parser.add_argument("--no-blocks", action="store_true", help="leave out the FLUX-shaped block")
    parser.add_argument("--memory", action="store_true", help="measure memory alone, which takes seconds")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    args = parser.parse_args()
    before = machine.describe()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = [c for root in args.artifacts for c in artifact_cases(root)]
        cases += [] if args.no_blocks else block_cases(folder)
        rows, slowest = ([], 0.0) if args.memory else latency(cases, args.rounds, args.runs, before)
        if args.memory:
            print(f"{before['cpu']}, {before['date']}")
        held, largest = memory(cases, folder)
        if args.json:
            args.json.write_text(json.dumps({"machine": before, "rows": rows + held}, indent=1), encoding="utf-8")
    if not args.memory:
        print(f"\nlatency, farthest off: {slowest:.0%}; allowed: {CPU_BAND:.0%}")
    print(f"memory, farthest off: {largest:.0%}; allowed: {MEMORY_BAND:.0%}")
    if slowest > CPU_BAND or largest > MEMORY_BAND:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
