"""The whole compiler as one straight function: a diffusers pipeline in, an artifact directory out."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from artifact import manifest as manifests
from artifact.files import remove_partials
from artifact.lock import held
from artifact.manifest import Artifact
from artifact.store import Store
from engines import targets
from export.components import components, latent_rule, picture_rule
from export.deliver import deliver
from export.describe import copy_folders, describe_components, describe_layers, pipeline_settings, remove_stale
from export.examples import Examples, read_examples
from export.options import BASELINE, Options
from export.plan import Build
from export.quantise import ask, calibrate_all, find_all, solve_all
from export.quantise import workers as workers_of
from export.rewrite import Models, check_reserve, refusals, rewrite
from export.source import Source, open_source
from export.stages import Stages
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
        calibration, drawn = read_examples(options, source)
    out = options.out or Path("out") / Path(source.name).name
    limit = None if options.cache_limit is None else int(options.cache_limit * 1e9)
    store = Store(options.cache or out / ".cache", limit)
    with held(out), store.in_use():
        remove_partials(out)
        build = Build(options, source, parts, out, store, stages)
        graphs = _export(build)
        refused = refusals(build, graphs, gpu=target.name != "cpu")
        layers = find_all(build, graphs)
        of_denoiser = layers.get(build.denoiser.name, [])
        check_reserve(options, of_denoiser)
        asked = ask(build, layers)
        pipe = _LazyPipeline(source, options.memory_limit)
        samples = calibrate_all(build, of_denoiser, calibration, pipe)
        solved = solve_all(build, layers, asked, samples)
        references = _references(build, drawn, pipe)
        # Without its manifest the directory is no artifact: a kill from here on leaves none that is half old.
        (out / manifests.NAME).unlink(missing_ok=True)
        models = rewrite(build, graphs, solved, refused)
        checks, unchecked = _check(build, models.portable)
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
            "pictures": rule.to_json() if (rule := picture_rule(source)) else None,
            "presets": build.presets,
            "components": describe_components(build, graphs, models),
            "folders": folders,
            "exports": checks,
            "layers": describe_layers(build, layers, solved),
            "references": references,
            "skipped": [*models.skipped, *unchecked],
        }
        files = [str(p.relative_to(out)) for p in models.files]
        files += [
            str(p.relative_to(out)) for f in folders.values() for p in sorted((out / f).rglob("*")) if p.is_file()
        ]
        content["files"] = manifests.record(out, sorted({*files, *references.get("files", ())}))
        remove_stale(out, content["files"])
        artifact = manifests.write(out, content)
        if late := deliver(artifact, target, options.preset, stages):
            artifact = manifests.write(out, content | {"skipped": [*content["skipped"], *late]})
        for sentence in artifact.manifest["skipped"]:
            stages.say(f"skipped: {sentence}")
        return artifact, _report(artifact, stages)


class _LazyPipeline:
    """The 16-bit torch pipeline, loaded when a stage first needs it: a resumed build may not."""

    def __init__(self, source: Source, max_bytes: int | None) -> None:
        self.source, self.max_bytes, self.pipe = source, max_bytes, None

    def __call__(self) -> Any:
        if self.pipe is None:
            from export.pipeline import load_pipeline

            self.pipe = load_pipeline(self.source, self.max_bytes)
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
        workers = min(workers_of(build.options), len(missing))
        if workers > 1:
            tick(0, len(missing), ", ".join(c.name for c in missing[:workers]))
            exporter = Exporter(dtype, str(build.store.root))
            for i, (part, _) in enumerate(each(exporter, missing, workers, preload="export.graph_cache")):
                tick(i + 1, len(missing), part.name)
        for part in build.components:
            graphs[part.name] = prepared(build.source, part, dtype, build.store)
            build.stages.detail(f"{part.name}: {len(graphs[part.name].graph)} nodes")
    return graphs


def _references(build: Build, examples: Examples, pipe: _LazyPipeline) -> dict[str, Any]:
    """The 16-bit pipeline's images and latents, stored for validation where that does not fit; {} for none."""
    from export.references import make_references

    prompts = examples.prompts
    if not prompts:
        return {}
    seeds = [build.options.seed + i for i in range(len(prompts))]
    with build.stages.stage("references") as tick:
        files = make_references(build.source, pipe(), prompts, seeds, build.out, build.store, tick, examples.pictures)
    return {"prompts": prompts, "seeds": seeds, "files": files}


def _check(build: Build, models: Models) -> tuple[dict[str, Any], list[str]]:
    """Every 16-bit graph against torch at shapes that were not the export's, and a sentence for each that was not."""
    from export.check import check_against_torch, obstacle

    found, skipped = {}, []
    with build.stages.stage("check") as tick:
        for i, part in enumerate(build.components):
            tick(i, len(build.components), part.name)
            path = next((files[-1] for p, files in models[part.name].items() if build.form(part, p) == BASELINE), None)
            if reason := obstacle(path, build.weights(part)):
                skipped.append(f"The graph of {part.name} was not compared with torch: {reason}.")
                continue
            assert path is not None
            found[part.name] = check_against_torch(path, build.source, part, build.options.dtype)
            for row in found[part.name]:
                build.stages.detail(f"{part.name} {row['output']} {row['shapes']}: relative {row['relative']:.2e}")
    return found, skipped


def _report(artifact: Artifact, stages: Stages) -> dict[str, Any]:
    """Measure, where there is something to compare with, and write report.json and report.html."""
    from engines.evaluate import describe, evaluate
    from engines.report import write_report

    if artifact.manifest["references"]:
        with stages.stage("measure") as tick:
            results = evaluate(artifact, progress=tick)
    else:
        results = describe(artifact)
    write_report(artifact, results)
    return results
