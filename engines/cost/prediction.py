"""Latency and memory of a preset on a target: its graphs' costs put together as the pipeline calls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import machine
from engines.cost import cpu, host, roofline, structure
from engines.cost.arena import grown_bytes
from engines.cost.ceilings import Ceilings
from engines.cost.graph import Graph, Shape, read
from engines.cost.liveness import peak_bytes
from engines.cost.operations import quantised_bytes, work
from engines.cost.structure import Nodes
from engines.families import layout
from engines.modes import CONTEXT_BYTES
from engines.pipeline import choose
from engines.shapes import input_shapes
from engines.targets import Target

FORMAT = 4
CPU_BAND = 0.25  # bench/predict.py's bound on the deviation from measured latency
MEMORY_BAND = 0.3  # on the CPU, what `bench/predict.py --memory` allows; of graphs, without the runtime
# On a GPU, assumed: activations share buffers better or worse than by liveness; contexts differ by driver.
GPU_ACTIVATIONS, GPU_CONTEXT = (0.5, 2.0), (0.5, 2.0)


@dataclass(frozen=True)
class Band:
    """A figure with what it would be at best and at worst."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Band) -> Band:
        return Band(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, count: float) -> Band:
        """The band of `count` such things."""
        return Band(self.low * count, self.expected * count, self.high * count)


@dataclass(frozen=True)
class Component:
    """One graph: `calls` per image, milliseconds of one call (None: not measured), and what it holds in bytes;
    `structure_bytes` are its nodes' on onnxruntime.

    `operations` and `moved_bytes` are of one call; `uncounted` operators have neither, with their number of nodes.
    """

    name: str
    role: str
    calls: int
    call_ms: Band | None
    operations: int
    moved_bytes: int
    nodes: int
    weight_bytes: int
    activation_bytes: int
    workspace_bytes: int
    structure_bytes: int
    uncounted: dict[str, int]

    @property
    def memory_bytes(self) -> int:
        """What the component needs while it runs."""
        return self.weight_bytes + self.activation_bytes + self.workspace_bytes + self.structure_bytes

    def memory(self, is_cpu: bool) -> Band:
        """The same with its band, in bytes."""
        if is_cpu:
            return Band(1 - MEMORY_BAND, 1.0, 1 + MEMORY_BAND).times(self.memory_bytes)
        varying = self.activation_bytes + self.workspace_bytes
        low, high = GPU_ACTIVATIONS
        return Band(self.weight_bytes, self.weight_bytes, self.weight_bytes) + Band(low, 1.0, high).times(varying)


class Form:
    """A graph as a target runs it, counted once: operations and bytes of a call, memory, its kernels on a GPU.

    `nodes`: what its file has beside, on onnxruntime; None on a GPU.
    """

    def __init__(self, graph: Graph, nodes: Nodes | None = None) -> None:
        self.graph, self.nodes, is_cpu = graph, nodes, nodes is not None
        self.weights = graph.weight_bytes + (nodes.kept_bytes if nodes else 0)
        self.fused: list[roofline.Kernel] = []
        self.single: list[roofline.Kernel] = []
        inner: set[str] = set()
        if not is_cpu:
            self.fused, inner = roofline.kernels(graph)
            self.single = roofline.kernels(graph, fused=False)[0]
        counted = [(op, work(op)) for op in graph.ops]
        done = [w for op, w in counted if w is not None and (is_cpu or not op.constant)]
        self.operations, self.moved = sum(w.operations for w in done), sum(w.nbytes for w in done)
        self.uncounted = dict(Counter(op.title for op, w in counted if w is None))
        kernels = [k.ops for k in self.fused]
        self.activations = grown_bytes(graph) if is_cpu else peak_bytes(graph, inner, kernels)
        own = [op for op in graph.ops if op.kind == "SvdqLinear" and op.known]
        self.workspace = max((quantised_bytes(op) for op in own), default=0)


class Forms:
    """Graphs by file and input shapes, each read once."""

    def __init__(self) -> None:
        self._read: dict[Any, Form] = {}

    def of(self, model: Path, shapes: Mapping[str, Shape], is_cpu: bool) -> Form:
        """The graph as onnxruntime runs it here, or as TensorRT parses it."""
        key = model, tuple(shapes.items()), is_cpu
        if key not in self._read:
            self._read[key] = (
                Form(cpu.graph(model, shapes), structure.nodes(model, shapes)) if is_cpu else Form(read(model, shapes))
            )
        return self._read[key]


@dataclass(frozen=True)
class Prediction:
    """A preset on a target. Bytes include what the runtime takes, `runtime_bytes` of them that no graph takes;
    `resident_band` and `pipelined_band` are the same bytes at best and at worst. `fits`: "resident" (all components at
    once), "pipelined" (the denoiser and the text encoders, or it and the decoder), "no", or None where the target's
    memory is not known; by the expected bytes. `host_ms` of the image pass between the graphs; None where that is not
    counted."""

    target: str
    preset: str
    height: int
    width: int
    steps: int
    batch: int
    components: tuple[Component, ...]
    host_ms: Band | None
    image_ms: Band | None
    resident_bytes: int
    pipelined_bytes: int
    resident_band: Band
    pipelined_band: Band
    runtime_bytes: int
    usable_bytes: int | None
    fits: str | None
    assumptions: tuple[str, ...]
    unverified: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON holds it; docs/predict.md explains every field."""
        return {"format": FORMAT, **asdict(self)}


def predict(
    artifact: Artifact,
    target: Target,
    preset: str | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    batch: int = 1,
    ceilings: Ceilings | None = None,
    forms: Forms | None = None,
) -> Prediction:
    """What `preset` (None: the default) of the artifact costs on the target; sizes in pixels, the model's if None.

    For the cpu target `ceilings` (engines.cost.ceilings.Ceilings) must hold what this machine can do; without them
    latency is None. `forms` keeps graphs between predictions of one artifact.

    Raises UserError for sizes that the model does not take, an unknown preset, a component without
    the form that the target runs.
    """
    preset = choose(artifact, preset)
    generation = artifact.manifest["generation"]
    height, width = height or generation["height"], width or generation["width"]
    steps = generation["num_inference_steps"] if steps is None else steps
    check(artifact, height, width, steps, batch)
    forms = Forms() if forms is None else forms
    components = tuple(
        _component(artifact, name, preset, target, count, (batch, height, width), ceilings, forms)
        for name, count in calls_per_image(artifact, steps).items()
    )
    bands = [c.call_ms.times(c.calls) for c in components if c.call_ms is not None]
    is_cpu = target.compute_capability is None
    between = _host_band(artifact, (batch, height, width), steps, ceilings) if is_cpu else None
    known = len(bands) == len(components) and (between is not None or not is_cpu)
    image = sum(bands, between or Band(0.0, 0.0, 0.0)) if known else None
    base = _runtime_bytes(artifact, preset, forms, ceilings, (batch, height, width)) if is_cpu else CONTEXT_BYTES
    runtime = Band(base, base, base) if is_cpu else Band(GPU_CONTEXT[0], 1.0, GPU_CONTEXT[1]).times(base)
    resident = sum((c.memory(is_cpu) for c in components), runtime)
    held: dict[str, Band] = {}
    for c in components:
        held[c.role] = held.get(c.role, Band(0, 0, 0)) + c.memory(is_cpu)
    denoiser = held.pop("denoiser")
    # All text encoders at once, as engines/residency.py.
    pipelined = runtime + denoiser + max(held.values(), key=lambda band: band.expected)
    usable = _usable_bytes(target)
    least, most = round(pipelined.expected), round(resident.expected)
    return Prediction(
        target.name, preset, height, width, steps, batch, components, between, image, most, least, resident, pipelined,
        base, usable, fits(most, least, usable), tuple(_assumptions(target, ceilings, components)),
        tuple(sorted(target.unverified & _FIGURES)),
    )  # fmt: skip


def _usable_bytes(target: Target) -> int | None:
    """This machine's memory for the cpu target."""
    if target.compute_capability is None:
        return int(machine.describe()["memory_bytes"])
    return None if target.usable_gb is None else int(target.usable_gb * 1e9)


_FIGURES = frozenset({"memory_gb", "bandwidth_gb_s", "fp16_tflops", "int8_tops", "int4_tops"})


def fits(resident: int, pipelined: int, usable: int | None) -> str | None:
    """ "resident", "pipelined" or "no"; None where the memory is not known."""
    if usable is None:
        return None
    return "resident" if resident <= usable else "pipelined" if pipelined <= usable else "no"


def check(artifact: Artifact, height: int, width: int, steps: int, batch: int) -> None:
    """Raises UserError for sizes that the pipeline cannot take, and where one of its components is missing."""
    for role in ("denoiser", "text_encoder", "vae_decoder"):
        if not artifact.component(role):
            raise UserError(f"{artifact.root} has no {role}: rebuild the artifact.")
    multiple = layout(artifact.manifest["components"]).multiple
    for what, value in (("height", height), ("width", width)):
        if value < multiple or value % multiple:
            raise UserError(f"{what} is {value}: give a multiple of {multiple}.")
    for what, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise UserError(f"{what} is {value}: give 1 or more.")


def calls_per_image(artifact: Artifact, steps: int) -> dict[str, int]:
    """How often text to image calls each component: under classifier-free guidance a text encoder twice, a denoiser
    twice a step unless it takes both halves at once; the image encoder where there is a picture beside the text."""
    components, generation = artifact.manifest["components"], artifact.manifest["generation"]
    family = layout(components)
    guidance = generation.get(family.guidance, 1.0)
    embedded = family.guidance == "guidance_scale" and not family.joined_guidance  # distilled: a scalar input
    guided = guidance > 1.0 and not embedded and (family.joined_guidance or "negative_prompt" in generation)
    counts = {
        "text_encoder": 2 if guided else 1,
        "denoiser": steps * (2 if guided and not family.joined_guidance else 1),
        "vae_decoder": 1,
        **({"vae_encoder": 1} if artifact.pictures is not None else {}),
    }
    return {name: counts[c["role"]] for name, c in components.items() if c["role"] in counts}


def _component(
    artifact: Artifact,
    name: str,
    preset: str,
    target: Target,
    calls: int,
    size: tuple[int, int, int],
    ceilings: Ceilings | None,
    forms: Forms,
) -> Component:
    is_cpu = target.compute_capability is None
    model = artifact.model(name, preset) if is_cpu else artifact.tensorrt(name, preset)
    if not model.is_file():
        raise UserError(f"{model} is missing: copy the artifact again or rebuild it.")
    form = forms.of(model, input_shapes(artifact, name, model, *size), is_cpu)
    uncounted = form.uncounted
    if is_cpu:
        band, uncounted = _cpu_band(form.graph, ceilings)
    else:
        band = _gpu_band(form, target)
    return Component(
        name, artifact.manifest["components"][name]["role"], calls, band and band.times(1000), form.operations,
        form.moved, len(form.graph.ops), form.weights, form.activations, form.workspace,
        ceilings.structure.of(form.nodes) if ceilings and ceilings.structure and form.nodes else 0, uncounted,
    )  # fmt: skip


def _runtime_bytes(
    artifact: Artifact, preset: str, forms: Forms, ceilings: Ceilings | None, size: tuple[int, int, int]
) -> int:
    """onnxruntime's own pages on this machine, and the code of all operators that the graphs have; 0 where that is not
    measured."""
    if ceilings is None or ceilings.structure is None:
        return 0
    kinds: set[str] = set()
    for name in calls_per_image(artifact, 1):
        model = artifact.model(name, preset)
        found = forms.of(model, input_shapes(artifact, name, model, *size), True).nodes
        kinds |= found.kinds if found else set()
    return int(ceilings.structure.session + len(kinds) * ceilings.structure.kind)


def _cpu_band(graph: Graph, ceilings: Ceilings | None) -> tuple[Band | None, dict[str, int]]:
    """In seconds, with the operators that no micro-benchmark stands for."""
    if ceilings is None or ceilings.missing(cpu.keys([graph])):
        return None, {}
    seconds, uncounted = cpu.seconds(graph, ceilings)
    return Band(seconds * (1 - CPU_BAND), seconds, seconds * (1 + CPU_BAND)), uncounted


def _host_band(artifact: Artifact, size: host.Size, steps: int, ceilings: Ceilings | None) -> Band | None:
    """In milliseconds."""
    seconds = None if ceilings is None else host.seconds(ceilings, host.key(artifact, size), steps)
    return None if seconds is None else Band(1 - CPU_BAND, 1.0, 1 + CPU_BAND).times(1e3 * seconds)


def _gpu_band(form: Form, target: Target) -> Band:
    if target.bandwidth_gb_s is None or target.fp16_tflops is None or target.int8_tops is None:
        raise UserError(f"{target.title} has no rates in engines/targets.py: choose another target.")
    widened = roofline.UNVERIFIED if roofline.unverified(target) else 1.0
    low, expected, high = (
        roofline.seconds(form.fused if s.fused else form.single, target, s)
        for s in (roofline.BEST, roofline.EXPECTED, roofline.WORST)
    )
    return Band(low / widened, expected, high * widened)


def _assumptions(target: Target, ceilings: Ceilings | None, components: tuple[Component, ...]) -> list[str]:
    if target.compute_capability is None:
        said = cpu.assumptions(ceilings)
        if ceilings:
            said.append(
                f"The bands are {CPU_BAND:.0%} either way for latency and {MEMORY_BAND:.0%} for the graphs' memory, "
                "what bench/predict.py allows."
            )
    else:
        said = [
            *roofline.assumptions(target),
            f"Memory: weights, activations by liveness, the plugin's workspace, and {CONTEXT_BYTES / 1e6:.0f} MB for "
            "the CUDA context and TensorRT; its band is half to twice of all but the weights (assumed).",
        ]
    for c in components:
        if c.uncounted:
            listed = ", ".join(f"{kind} ({n})" for kind, n in sorted(c.uncounted.items()))
            said.append(f"Not counted in {c.name}: {listed}.")
    return said
