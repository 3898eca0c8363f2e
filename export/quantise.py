"""Which layers of a pipeline become 4-bit, what they see, and their solution, each through the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import onnx_ir as ir

from artifact.errors import UserError
from artifact.free import available_cores
from artifact.store import key_of
from export.components import Component
from export.examples import Examples
from export.options import Options
from export.plan import Build
from export.weights import find_weight
from passes.layers import Layer, find_layers, quantised
from passes.presets import PRESETS, layered
from passes.solve import StoredLayers, recipes, solve
from passes.solver import Recipe

Layers = dict[str, list[Layer]]  # by component
Recipes = dict[str, dict[str, dict[str, Recipe]]]  # {component: {form: {layer: recipe}}}


def find_all(build: Build, graphs: Mapping[str, ir.Model]) -> Layers:
    """The 4-bit layers of every quantised component. Raises UserError where one has none."""
    if not build.quantises:
        return {}
    return {part.name: find(build, part, graphs[part.name]) for part in build.quantised}


def find(build: Build, part: Component, graph: ir.Model) -> list[Layer]:
    """The 4-bit layers of one component's graph. Raises UserError where there are none."""
    policy = build.policy(part)
    found = quantised(find_layers(layered(policy)(graph.clone()).model.graph, policy))
    if not found:
        raise UserError(
            f"No layer of {build.source.name}'s {part.name} matched what {build.options.preset!r} quantises: "
            "build it with --preset fp16, or report the model's architecture."
        )
    return found


def ask(build: Build, layers: Layers) -> Recipes:
    """How every layer is to be solved for every form. Raises UserError for a rank above a layer's width."""
    return {part.name: ask_for(build, part, layers[part.name]) for part in build.quantised if part.name in layers}


def ask_for(build: Build, part: Component, layers: Sequence[Layer]) -> dict[str, dict[str, Recipe]]:
    """`ask` for one component's layers."""
    options = build.options
    rank = options.rank if part is build.denoiser else None
    return {
        f: recipes(PRESETS[f], layers, part.dtype(options.dtype), rank, options.group_size, options.seed)
        for f in build.forms(part)
        if PRESETS[f].quantises
    }


def sample_keys(build: Build, layers: Sequence[Layer], examples: Examples) -> dict[str, str]:
    """Store keys of the denoiser's samples by Layer.input; none without calibration."""
    from export.pipeline import arithmetic

    options = build.options
    if options.data_free:
        return {}
    versions = [f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers")]
    generation = repr(sorted(build.source.generation.items()))
    drawn = f"rows {options.rows} seed {options.seed}"
    seen = [*examples.prompts, *([] if examples.pictures is None else [examples.pictures.digest])]
    run = key_of("samples 2", build.source.sha256, generation, drawn, arithmetic(build.source), *versions, *seen)
    return {layer.input: key_of(run, layer.module) for layer in layers}


def calibrate_all(build: Build, layers: Sequence[Layer], examples: Examples, pipe: Callable[[], Any]) -> dict[str, str]:
    """Store keys of the denoiser's samples by Layer.input; the pipeline runs only where some are missing."""
    from export.calibrate import calibrate

    options, keys, prompts = build.options, sample_keys(build, layers, examples), examples.prompts
    modules = {layer.input: layer.module for layer in layers}
    if any(build.store.get_bytes(k) is None for k in keys.values()):
        with build.stages.stage("calibrate") as tick:
            seeds = [options.seed + i for i in range(len(prompts))]
            found = calibrate(
                build.source,
                pipe(),
                modules,
                prompts,
                seeds,
                options.rows,
                options.seed,
                build.store.root,
                tick,
                examples.pictures,
            )
            for name, rows in found.items():
                build.store.put_arrays(keys[name], {"samples": rows}, {})
    return keys


def solve_all(
    build: Build, layers: Layers, asked: Recipes, samples: Mapping[str, str]
) -> dict[str, dict[str, StoredLayers]]:
    """Solve every layer that the store does not hold yet: {component: {form: layers}}.

    Only the denoiser is calibrated: the other components' layers keep 16-bit activations.
    """
    solved: dict[str, dict[str, StoredLayers]] = {}
    for part in build.quantised if layers else ():
        seen = samples if part is build.denoiser else {}
        for form, recipes_by_name in asked[part.name].items():
            title = form if part is build.denoiser else f"{part.name} {form}"
            solved.setdefault(part.name, {})[form] = _solve(
                build, title, part, layers[part.name], recipes_by_name, seen
            )
    return solved


def _solve(
    build: Build, title: str, part: Component, layers: Sequence[Layer], asked: Mapping[str, Recipe],
    samples: Mapping[str, str],
) -> StoredLayers:  # fmt: skip
    done = 0
    with build.stages.stage("solve") as tick:

        def line(text: str) -> None:
            nonlocal done
            done += 1
            tick(done, len(layers), title)
            build.stages.detail(text)

        tick(0, len(layers), title)
        index = build.source.weights(part.module)
        names = {name for layer in layers for name in (*layer.weights, *layer.biases) if name is not None}
        tensors = {name: find_weight(part, index, name) for name in names}
        options = build.options
        return solve(
            layers, asked, tensors, samples, build.store, workers(options), line, options.rows, options.memory_limit,
            options.cluster, identity(build, part),
        )  # fmt: skip


def identity(build: Build, part: Component) -> str:
    """What tells the component's weights from all others."""
    return f"{build.source.sha256} {part.module}"


def workers(options: Options) -> int:
    """Worker processes of a build."""
    return options.jobs or available_cores()
