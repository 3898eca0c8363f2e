"""What a build would do: what is kept, made anew and skipped, sizes before and after, about what time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights

from engines.report.tables import bytes_text
from export import references
from export.check import obstacle
from export.components import Component
from export.estimate import (
    EXPORT_S,
    READ_S,
    WRITE_S,
    WRITING_BYTES,
    checking_bytes,
    exporting_bytes,
    pipeline_bytes,
    solving_bytes,
    solving_seconds,
)
from export.examples import Examples
from export.fake_module import fake_module
from export.graph_cache import graph_key, load_prepared
from export.options import BASELINE, Options
from export.plan import Build, planned
from export.quantise import ask_for, find, identity, sample_keys, workers
from export.safetensors_index import Weight
from export.stages import Stages
from export.weights import find_weight
from passes.layers import Layer
from passes.policy import KEEP, Policy
from passes.presets import PRESETS
from passes.solve import known_layers, stored_bytes
from passes.solver import Recipe


def dry_run(options: Options, console: Any = None) -> Plan:
    """Print what `compile_model` would do with these options, and return it. Writes nothing.

    Raises UserError as `compile_model` would, for all that shows before anything is computed.
    """
    build, calibration, examples = planned(options, Stages(quiet=True))
    found = plan(build, calibration, examples)
    show(build, found, console)
    return found


@dataclass(frozen=True)
class Planned:
    """One component in one form. Bytes of the weights in the source and in the portable form; layers in 4 bits.

    `solved`: those of them that the store holds; None where the graph is not there yet, so that nobody knows.
    """

    component: str
    form: str
    graph_kept: bool
    bytes_before: int
    bytes_after: int
    layers: int
    solved: int | None
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a build would do.

    `memory`: {stage: bytes at its peak}, 0 for one that would not run. `samples`, `images`: (kept, all) of calibration
    samples and reference images; samples are None where nobody knows yet how many there will be. `skipped`: what would
    not be done, a sentence each. `seconds`: without drawing and measuring.
    """

    rows: list[Planned]
    memory: dict[str, int]
    samples: tuple[int, int] | None
    images: tuple[int, int]
    skipped: list[str]
    seconds: float


def plan(build: Build, calibration: Examples, examples: Examples) -> Plan:
    """A row for every component and form that the build would write. Nothing is exported, solved or written."""
    stored = {c.name: load_prepared(build.store, graph_key(c, build.options.dtype)) for c in build.components}
    graphs = {name: graph for name, graph in stored.items() if graph is not None}
    layers = {part.name: _layers(build, part, graphs) for part in build.components}
    keys = sample_keys(build, layers[build.denoiser.name], calibration)
    solving: list[tuple[Layer, Recipe, int]] = []
    rows = []
    for part in build.components:
        seen = keys if part is build.denoiser else {}
        for form in build.forms(part):
            rows.append(_planned(build, part, form, layers[part.name], part.name in graphs, seen, solving))
    seeds = [build.options.seed + i for i in range(len(examples.prompts))]
    images = references.kept(build.source, examples, seeds, build.store), len(examples.prompts)
    samples = None
    if build.denoiser.name in graphs:
        unique = set(keys.values())
        samples = sum(build.store.path(key).is_file() for key in unique), len(unique)
    missing = len(build.components) - len(graphs)
    obstacles = [(part, _obstacle(build, part)) for part in build.components]
    memory = {
        "export": exporting_bytes(build, missing) if missing else 0,
        "solve": solving_bytes(build, solving),
        "calibrate and draw": 0,
        "rewrite": WRITING_BYTES,
        "check": checking_bytes(build, [part for part, reason in obstacles if reason is None]),
    }
    if images[0] < images[1] or (keys and (samples is None or samples[0] < samples[1])):
        memory["calibrate and draw"] = pipeline_bytes(build)
    skipped = build.kept_wide() + [
        f"The graph of {part.name} would not be compared with torch: {reason}." for part, reason in obstacles if reason
    ]
    seconds = sum(r.seconds for r in rows) + EXPORT_S * missing / min(workers(build.options), max(1, missing))
    read = sum(w.nbytes for module in build.source.modules for w in _weights(build, module))
    return Plan(rows, memory, samples, images, skipped, seconds + READ_S * read)


def _weights(build: Build, module: str) -> list[Weight]:
    """The tensors of one of the pipeline's modules; none where it is not a model."""
    known = {c.module for c in build.components}
    return list(build.source.weights(module).values()) if module in known else []


def _obstacle(build: Build, part: Component) -> str | None:
    """Why the part's graph would not be compared with torch."""
    written = any(build.form(part, preset) == BASELINE for preset in build.presets)
    return obstacle(written, build.weights(part), build.options.memory_limit)


def _layers(build: Build, part: Component, graphs: dict[str, Any]) -> list[Layer]:
    """The 4-bit layers: of the exported graph where there is one, else of the module's linears before merging."""
    if part not in build.quantised or not build.quantises:
        return []
    if part.name in graphs:
        return find(build, part, graphs[part.name])
    return _of_module(part, build.policy(part))


def _of_module(part: Component, policy: Policy) -> list[Layer]:
    with init_empty_weights():
        module = part.row.build(part.config)
    found = []
    for name, linear in module.named_modules():
        scheme = policy.scheme(name)
        if scheme == KEEP or not hasattr(linear, "weight") or not isinstance(linear.weight, torch.nn.Parameter):
            continue
        if linear.weight.dim() < 2 or math.prod(linear.weight.shape[2:]) != 1:
            continue
        n, k = linear.weight.shape[:2]
        biases = (f"{name}.bias",) if getattr(linear, "bias", None) is not None else ()
        found.append(Layer(name, (f"{name}.weight",), biases, None, name, name, k, n, scheme, False))
    return found


def _planned(
    build: Build, part: Component, form: str, layers: list[Layer], kept: bool, samples: Mapping[str, str],
    solving: list[tuple[Layer, Recipe, int]],
) -> Planned:  # fmt: skip
    """One row; appends the layers that would be solved for it to `solving`."""
    dtype = part.dtype(build.options.dtype)
    itemsize = 2 if dtype == "float16" else 4
    held = _held(part, dtype, build.source.weights(part.module))
    before, whole = sum(weight.nbytes for weight in held), sum(held.values())
    if not PRESETS[form].quantises:
        return Planned(part.name, form, kept, before, whole, 0, None, WRITE_S * whole)
    asked = ask_for(build, part, layers)[form]
    done = known_layers(layers, asked, samples, build.store, identity(build, part)) if kept else {}
    after, rows = whole, build.options.rows if samples else 0
    for layer in layers:
        after += stored_bytes(layer, asked[layer.name]) - itemsize * layer.n * (layer.k + bool(layer.biases))
    new = [layer for layer in layers if layer.name not in done]
    solving += [(layer, asked[layer.name], rows) for layer in new]
    seconds = solving_seconds(new, asked, workers(build.options)) + 2 * WRITE_S * after
    return Planned(part.name, form, kept, before, after, len(layers), len(done) if kept else None, seconds)


def _held(part: Component, dtype: str, index: Mapping[str, Weight]) -> dict[Weight, int]:
    """The tensors of the files that the part's graph has, and their bytes in it where nothing is 4-bit.

    An autoencoder's two graphs have each their half of its file; tied parameters are one tensor of it.
    """
    module, _ = fake_module(part, dtype)
    tables = {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, torch.nn.Embedding)}
    held = {}
    for name, parameter in module.named_parameters():
        weight = find_weight(part, index, name)
        as_stored = name in tables and weight.dtype in ("F16", "BF16")  # tables.py
        held[weight] = parameter.numel() * (2 if as_stored else parameter.element_size())
    return held


def show(build: Build, found: Plan, console: Any = None) -> None:
    """The rows as a table, then what else would run or be skipped, the sums, and on what they are estimates."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(title=f"{build.source.name} → {build.out} (nothing was written)", title_justify="left")
    for heading in ("component", "form", "graph", "4-bit\nlayers", "solved\nbefore", "before", "after", "about"):
        text = heading in ("component", "form")
        table.add_column(heading, justify="left" if text else "right", no_wrap=text)
    for r in found.rows:
        solved = "–" if not r.layers else "unknown" if r.solved is None else str(r.solved)
        table.add_row(
            r.component, r.form, "kept" if r.graph_kept else "export", str(r.layers or "–"), solved,
            bytes_text(r.bytes_before), bytes_text(r.bytes_after), f"{r.seconds:.0f} s",
        )  # fmt: skip
    console.print(table)
    for sentence in sentences(build, found):
        console.print(sentence, highlight=False, soft_wrap=True)


def sentences(build: Build, found: Plan) -> list[str]:
    """What the table does not say."""
    options, after = build.options, sum(r.bytes_after for r in found.rows)
    said = [f"In all {bytes_text(after)} in the portable forms, about {minutes(found.seconds)}."]
    stage, peak = max(found.memory.items(), key=lambda item: item[1])
    said.append(f"Memory: about {bytes_text(peak)} at its peak, in the stage {stage!r}, without mapped files.")
    if any(r.layers for r in found.rows) and not options.data_free:
        kept, count = found.samples or (0, None)
        if kept != count:
            said.append(f"Calibration runs the 16-bit pipeline on {options.calibration} prompts: not in that time.")
        else:
            said.append(f"Calibration: all {count} samples are kept.")
    if found.images[1]:
        kept, count = found.images
        said.append(
            f"Of {count} reference images {kept} are kept; the others are drawn, and every preset is measured: not in "
            "that time."
        )
    said += [f"Skipped: {sentence}" for sentence in found.skipped]
    said.append("Estimated from one machine's times (docs/measurements.md): yours may be twice as fast, or half.")
    return said


def minutes(seconds: float) -> str:
    """ "40 s", "12 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
