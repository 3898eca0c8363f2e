"""The whole compiler as one straight function: a diffusers pipeline in, an artifact directory out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from artifact import manifest as manifests
from artifact.errors import UserError
from artifact.files import remove_partials
from artifact.lock import held
from artifact.manifest import Artifact
from artifact.store import Store, key_of
from engines import targets
from export.components import components, latent_rule
from export.deliver import deliver
from export.describe import copy_folders, describe_components, layer_rows, pipeline_settings, remove_stale
from export.options import Options
from export.plan import Build
from export.prompt_files import default_prompts, read_prompts, reference_prompts
from export.rewrite import BASELINE, Models, check_reserve, refusals, rewrite
from export.source import Source, open_source
from export.stages import Stages
from passes.layers import Layer, find_layers, quantised
from passes.presets import PRESETS, layered
from passes.solve import StoredLayers, recipes, solve
from passes.solver.pool import each

PACKAGES = ("svdq-edge", "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def compile_model(options: Options, stages: Stages) -> tuple[Artifact, dict[str, Any]]:
    """Build the artifact that `options` describe and measure it. Returns it and what report.json holds.

    Raises UserError for whatever the user can put right. A build that was killed is resumed: finished exports,
    samples, layers and references are found in the store.
    """
    options.check()
    target = targets.find(options.target)
    with stages.stage("model"):
        source = open_source(options.model)
        if options.steps is not None:
            source = replace(source, generation={**source.generation, "num_inference_steps": options.steps})
        parts = components(source)
        # Read now, so that a bad file is refused before anything is written.
        calibration = read_prompts(options.prompts or default_prompts(source))[: options.calibration]
        prompts = read_prompts(options.reference_prompts or reference_prompts(source))[: options.references]
    out = options.out or Path("out") / Path(source.name).name
    with held(out):
        remove_partials(out)
        build = Build(options, source, parts, out, Store(options.cache or out / ".cache"), stages)
        graphs = _export(build)
        refused = refusals(build, graphs, gpu=target.name != "cpu")
        layers = _layers(build, graphs[build.denoiser.name])
        check_reserve(options, layers)
        chosen = {n: PRESETS[n] for n in options.presets if PRESETS[n].quantises}
        asked = {n: recipes(p, layers, options.dtype, options.rank, options.group_size, options.seed)
                 for n, p in chosen.items()}  # fmt: skip
        pipe = _LazyPipeline(source)
        samples = _calibrate(build, layers, calibration, pipe)
        solved = {n: _solve(build, n, layers, r, samples) for n, r in asked.items()}
        references = _references(build, prompts, pipe)
        # Without its manifest the directory is no artifact: a kill from here on leaves none that is half old.
        (out / manifests.NAME).unlink(missing_ok=True)
        models = rewrite(build, graphs, solved, refused)
        checks = _check(build, models.portable)
        folders = copy_folders(build)
        content: dict[str, Any] = {
            "name": out.name,
            "pipeline": source.pipeline,
            "source": {"model": Path(source.name).name, "sha256": source.sha256},
            "target": target.name,
            "dtype": options.dtype,
            "reserve_rank": options.reserve_rank,
            "versions": {p: version(p) for p in PACKAGES},
            "generation": build.source.generation,
            "pipeline_config": pipeline_settings(source.index),
            "latents": latent_rule(source).to_json(),
            "presets": options.presets,
            "components": describe_components(build, graphs, models),
            "folders": folders,
            "exports": checks,
            "layers": {n: layer_rows(layers, s) for n, s in solved.items()},
            "references": references,
            "skipped": models.skipped,
        }
        files = [str(p.relative_to(out)) for p in models.files]
        files += [
            str(p.relative_to(out)) for f in folders.values() for p in sorted((out / f).rglob("*")) if p.is_file()
        ]
        content["files"] = manifests.record(out, sorted({*files, *references["files"]}))
        remove_stale(out, content["files"])
        artifact = manifests.write(out, content)
        if late := deliver(artifact, target, options.preset, stages):
            artifact = manifests.write(out, content | {"skipped": [*models.skipped, *late]})
        for sentence in artifact.manifest["skipped"]:
            stages.say(f"skipped: {sentence}")
        return artifact, _report(artifact, stages)


class _LazyPipeline:
    """The 16-bit torch pipeline, loaded when a stage first needs it: a resumed build may not."""

    def __init__(self, source: Source) -> None:
        self.source, self.pipe = source, None

    def __call__(self) -> Any:
        if self.pipe is None:
            from export.pipeline import load_pipeline

            self.pipe = load_pipeline(self.source)
        return self.pipe


def _export(build: Build) -> dict[str, ir.Model]:
    """Every component's graph, weights by reference; from the store where it was exported before.

    Exporting is one thread's work and the longest of a small build: components are exported side by side.
    """
    from export.graph_cache import Exporter, graph_key, prepared

    graphs, dtype = {}, build.options.dtype
    with build.stages.stage("export") as tick:
        missing = [c for c in build.components if build.store.get_bytes(graph_key(c, dtype)) is None]
        missing.sort(key=lambda c: c.role != "denoiser")  # the largest first
        workers = min(_workers(build.options), len(missing))
        if workers > 1:
            tick(0, len(missing), ", ".join(c.name for c in missing[:workers]))
            exporter = Exporter(dtype, str(build.store.root))
            for i, (part, _) in enumerate(each(exporter, missing, workers, preload="export.graph_cache")):
                tick(i + 1, len(missing), part.name)
        for part in build.components:
            graphs[part.name] = prepared(build.source, part, dtype, build.store)
            build.stages.detail(f"{part.name}: {len(graphs[part.name].graph)} nodes")
    return graphs


def _layers(build: Build, graph: ir.Model) -> list[Layer]:
    """The denoiser's layers that become 4-bit. Raises UserError where there are none."""
    found = quantised(find_layers(layered(build.policy)(graph.clone()).model.graph, build.policy))
    if not found and any(PRESETS[n].quantises for n in build.options.presets):
        raise UserError(
            f"No layer of {build.source.name}'s {build.denoiser.name} matched what {build.options.preset!r} quantises: "
            "build it with --preset fp16, or report the model's architecture."
        )
    return found


def _calibrate(build: Build, layers: Sequence[Layer], prompts: Sequence[str], pipe: _LazyPipeline) -> dict[str, str]:
    """Store keys of the samples by Layer.input; the pipeline runs only where some are missing."""
    from export.calibrate import calibrate

    options = build.options
    if not any(PRESETS[n].quantises for n in options.presets):
        return {}
    modules = {layer.input: layer.module for layer in layers}
    versions = [f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers")]
    run = key_of(
        "samples 1",
        build.source.sha256,
        repr(sorted(build.source.generation.items())),
        f"rows {options.rows} seed {options.seed}",
        *versions,
        *prompts,
    )
    keys = {name: key_of(run, module) for name, module in modules.items()}
    if any(build.store.get_bytes(k) is None for k in keys.values()):
        with build.stages.stage("calibrate") as tick:
            seeds = [options.seed + i for i in range(len(prompts))]
            found = calibrate(build.source, pipe(), modules, prompts, seeds, options.rows, options.seed, tick)
            for name, rows in found.items():
                build.store.put_arrays(keys[name], {"samples": rows}, {})
    return keys


def _solve(
    build: Build, preset: str, layers: Sequence[Layer], asked: Mapping[str, Any], samples: Mapping[str, str]
) -> StoredLayers:
    """Solve the denoiser's layers for one preset."""
    done = 0
    with build.stages.stage("solve") as tick:

        def line(text: str) -> None:
            nonlocal done
            done += 1
            tick(done, len(layers), preset)
            build.stages.detail(text)

        tick(0, len(layers), preset)
        tensors = build.source.weights(build.denoiser.module)
        options = build.options
        limits = options.rows, options.memory_limit, options.cluster
        return solve(layers, asked, tensors, samples, build.store, _workers(options), line, *limits)


def _workers(options: Options) -> int:
    return options.jobs or len(os.sched_getaffinity(0))


def _references(build: Build, prompts: Sequence[str], pipe: _LazyPipeline) -> dict[str, Any]:
    """The 16-bit pipeline's images and latents, stored so that a later validation needs no 16-bit model."""
    from export.references import make_references

    seeds = [build.options.seed + i for i in range(len(prompts))]
    with build.stages.stage("references") as tick:
        files = make_references(build.source, pipe(), prompts, seeds, build.out, build.store, tick)
    return {"prompts": prompts, "seeds": seeds, "files": files}


def _check(build: Build, models: Models) -> dict[str, Any]:
    """Every exported graph against torch at shapes that were not the export's."""
    from export.check import check_against_torch

    found = {}
    with build.stages.stage("check") as tick:
        for i, part in enumerate(build.components):
            tick(i, len(build.components), part.name)
            path = models[part.name][BASELINE][-1]
            found[part.name] = check_against_torch(path, build.source, part, build.options.dtype)
            for row in found[part.name]:
                build.stages.detail(f"{part.name} {row['output']} {row['shapes']}: relative {row['relative']:.2e}")
    return found


def _report(artifact: Artifact, stages: Stages) -> dict[str, Any]:
    """Measure and write report.json and report.html."""
    from engines.evaluate import evaluate
    from engines.report import write_report

    with stages.stage("measure") as tick:
        results = evaluate(artifact, progress=tick)
    write_report(artifact, results)
    return results
