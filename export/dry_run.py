"""What a build would do: what is kept, what is made anew, sizes before and after, and about how long it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from artifact.store import Store
from engines.report.tables import bytes_text
from export.components import Component, components
from export.fake_module import fake_module
from export.graph_cache import graph_key, load_prepared
from export.options import Options
from export.plan import Build
from export.prompt_files import default_prompts, read_prompts
from export.quantise import ask_for, find, identity, sample_keys, workers
from export.safetensors_index import Weight
from export.source import open_source
from export.stages import Stages
from passes.layers import Layer
from passes.policy import KEEP, Policy
from passes.presets import PRESETS
from passes.solve import known_layers
from plugins.svdq_linear.spec import group_count, padded_rank

# Seconds per weight on one core, and per byte of a form, as bench/compile.py took them (docs/measurements.md): another
# machine may take half or twice as long.
SOLVE_S, ROUND_S = 1e-7, 2e-8  # with a branch; rounded to nearest
WRITE_S = 1e-8


def dry_run(options: Options, console: Any = None) -> list[Planned]:
    """Print what `compile_model` would do with these options; returns the rows. Writes nothing.

    Raises UserError as `compile_model` would, for all that shows before anything is computed.
    """
    options.check()
    source = open_source(options.model)
    out = options.out or Path("out") / Path(source.name).name
    build = Build(options, source, components(source), out, Store(options.cache or out / ".cache"), Stages(quiet=True))
    prompts = read_prompts(options.prompts or default_prompts(source))[: options.calibration]
    rows = plan(build, prompts)
    show(build, rows, console)
    return rows


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


def plan(build: Build, prompts: Sequence[str]) -> list[Planned]:
    """A row for every component and form that the build would write. Nothing is exported, solved or written."""
    stored = {c.name: load_prepared(build.store, graph_key(c, build.options.dtype)) for c in build.components}
    graphs = {name: graph for name, graph in stored.items() if graph is not None}
    rows = []
    for part in build.components:
        layers = _layers(build, part, graphs)
        samples = sample_keys(build, layers, prompts) if part is build.denoiser else {}
        rows += [_planned(build, part, form, layers, part.name in graphs, samples) for form in build.forms(part)]
    return rows


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
    build: Build, part: Component, form: str, layers: list[Layer], kept: bool, samples: Mapping[str, str]
) -> Planned:
    index = build.source.weights(part.module)
    before = sum(w.nbytes for w in index.values())
    dtype = part.dtype(build.options.dtype)
    itemsize = 2 if dtype == "float16" else 4
    whole = _whole(part, dtype, index)
    if not PRESETS[form].quantises:
        return Planned(part.name, form, kept, before, whole, 0, None, WRITE_S * whole)
    asked = ask_for(build, part, layers)[form]
    done = known_layers(layers, asked, samples, build.store, identity(build, part)) if kept else None
    after, seconds = whole, 0.0
    for layer in layers:
        recipe = asked[layer.name]
        after += _bytes(layer, recipe.group_size, padded_rank(recipe.rank), itemsize) - itemsize * layer.n * layer.k
        if done is None or layer.name not in done:
            seconds += (SOLVE_S if recipe.rank else ROUND_S) * layer.n * layer.k / workers(build.options)
    solved = None if done is None else len(done)
    return Planned(part.name, form, kept, before, after, len(layers), solved, seconds + 2 * WRITE_S * after)


def _whole(part: Component, dtype: str, index: Mapping[str, Weight]) -> int:
    """Bytes of the weights of a graph in which none is 4-bit: of what the files hold, those that the module has."""
    module, _ = fake_module(part, dtype)
    words = {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, torch.nn.Embedding)}
    sizes = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        stored = next((index[n] for n in part.row.file_names(name) if n in index), None)
        if stored is not None:
            halved = name in words and stored.dtype in ("F16", "BF16")  # tables.py
            sizes[stored.name] = parameter.numel() * (2 if halved else parameter.element_size())
    return sum(sizes.values())


def _bytes(layer: Layer, group: int, rank: int, itemsize: int) -> int:
    """What a 4-bit layer takes: codes, scales, branch, smoothing."""
    scales = layer.n * group_count(layer.k, group)
    return layer.n * layer.k // 2 + itemsize * (scales + rank * (layer.n + layer.k) + layer.k)


def show(build: Build, rows: Sequence[Planned], console: Any = None) -> None:
    """The rows as a table, then what else would run, the sums, and on what the time is an estimate."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(title=f"{build.source.name} → {build.out} (nothing was written)", title_justify="left")
    for heading in ("component", "form", "graph", "4-bit\nlayers", "solved\nbefore", "before", "after", "about"):
        text = heading in ("component", "form")
        table.add_column(heading, justify="left" if text else "right", no_wrap=text)
    for r in rows:
        solved = "–" if not r.layers else "unknown" if r.solved is None else str(r.solved)
        table.add_row(
            r.component, r.form, "kept" if r.graph_kept else "export", str(r.layers or "–"), solved,
            bytes_text(r.bytes_before), bytes_text(r.bytes_after), f"{r.seconds:.0f} s",
        )  # fmt: skip
    console.print(table)
    largest = max((r.layers for r in rows), default=0)
    options = build.options
    after = sum(r.bytes_after for r in rows)
    said = [f"In all {bytes_text(after)} in the portable forms, about {minutes(sum(r.seconds for r in rows))}."]
    if largest and not options.data_free:
        said.append(f"Calibration runs the 16-bit pipeline on {options.calibration} prompts: not in that time.")
    if options.references:
        said.append(f"{options.references} reference images are drawn and every preset is measured: not in that time.")
    if not all(r.graph_kept for r in rows):
        said.append("Exporting graphs takes up to five minutes for the largest models: not in that time.")
    said.append("Estimated from one machine's times (docs/measurements.md): yours may be twice as fast, or half.")
    for sentence in said:
        console.print(sentence, highlight=False, soft_wrap=True)


def minutes(seconds: float) -> str:
    """ "40 s", "12 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
