"""The whole compiler as one straight function: a diffusers pipeline in, an artifact directory out."""

from __future__ import annotations

import gc
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from artifact import manifest as manifests
from artifact.files import remove_partials
from artifact.free import available_bytes, trim
from artifact.lock import held
from artifact.manifest import Artifact
from engines import targets
from export.components import latent_rule, picture_rule
from export.deliver import deliver
from export.describe import copy_folders, describe_components, describe_layers, pipeline_settings, remove_stale
from export.examples import Examples
from export.options import BASELINE, Options
from export.plan import Build, planned
from export.quantise import ask, calibrate_all, find_all, solve_all
from export.quantise import workers as workers_of
from export.references import References, draw_references, write_references
from export.rewrite import Models, check_reserve, refusals, rewrite
from export.source import Source
from export.stages import Stages
from passes.solver.pool import each

PACKAGES = ("svdq-edge", "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def compile_model(options: Options, stages: Stages) -> tuple[Artifact, dict[str, Any]]:
    """Build the artifact that `options` describe and measure it. Returns it and what report.json holds.

    Raises UserError for whatever the user can put right. A build that was killed is resumed: finished exports,
    samples, layers and references are found in the store.
    """
    with stages.stage("model"):
        # Prompts and pictures are read now, so that a bad file is refused before anything is written.
        build, calibration, examples = planned(options, stages)
    target, source, out = targets.find(options.target), build.source, build.out
    with held(out), build.store.in_use():
        remove_partials(out, shared=build.store.root)
        graphs = _export(build)
        refused = refusals(build, graphs, gpu=target.name != "cpu")
        layers = find_all(build, graphs)
        of_denoiser = layers.get(build.denoiser.name, [])
        check_reserve(options, of_denoiser)
        asked = ask(build, layers)
        pipe = _LazyPipeline(source, options.memory_limit)
        samples = calibrate_all(build, of_denoiser, calibration, pipe)
        drawn = _references(build, examples, pipe)
        pipe.close()  # before workers want the memory
        solved = solve_all(build, layers, asked, samples)
        # Without its manifest the directory is no artifact: a kill from here on leaves none that is half old.
        (out / manifests.NAME).unlink(missing_ok=True)
        references: dict[str, Any] = {}
        if drawn is not None:
            files = write_references(drawn, out)
            references = {"prompts": examples.prompts, "seeds": drawn.record["seeds"], "files": files}
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
            "skipped": [*models.skipped, *build.kept_wide(), *unchecked],
        }
        names = [str(p.relative_to(out)) for p in models.files]
        names += [
            str(p.relative_to(out)) for f in folders.values() for p in sorted((out / f).rglob("*")) if p.is_file()
        ]
        content["files"] = manifests.record(out, sorted({*names, *references.get("files", ())}))
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

    def close(self) -> None:
        """Free it, and give back to the system what weights that came and went have left in the C library's heap."""
        self.pipe = None
        gc.collect()  # modules whose weights stay in files refer to themselves through their hooks
        trim()


def _export(build: Build) -> dict[str, ir.Model]:
    """Every component's graph, weights by reference; from the store where it was exported before.

    Exporting is one thread's work and the longest of a small build: components are exported side by side.
    """
    from export.estimate import EXPORT_BYTES
    from export.graph_cache import Exporter, graph_key, prepared

    graphs, dtype = {}, build.options.dtype
    with build.stages.stage("export") as tick:
        missing = [c for c in build.components if build.store.get_bytes(graph_key(c, dtype)) is None]
        missing.sort(key=lambda c: c.role != "denoiser")  # the largest first
        workers = min(workers_of(build.options), len(missing))
        if workers > 1:
            tick(0, len(missing), ", ".join(c.name for c in missing[:workers]))
            exporter = Exporter(dtype, str(build.store.root))
            limit = build.options.memory_limit or available_bytes()
            finished = each(exporter, missing, workers, "export.graph_cache", lambda _: EXPORT_BYTES, limit)
            for i, (part, _) in enumerate(finished):
                tick(i + 1, len(missing), part.name)
        for part in build.components:
            graphs[part.name] = prepared(build.source, part, dtype, build.store)
            build.stages.detail(f"{part.name}: {len(graphs[part.name].graph)} nodes")
    return graphs


def _references(build: Build, examples: Examples, pipe: _LazyPipeline) -> References | None:
    """The 16-bit pipeline's images and latents, stored for validation where that does not fit; None where none are."""
    prompts = examples.prompts
    if not prompts:
        return None
    seeds = [build.options.seed + i for i in range(len(prompts))]
    with build.stages.stage("references") as tick:
        return draw_references(build.source, pipe, prompts, seeds, build.store, tick, examples.pictures)


def _check(build: Build, models: Models) -> tuple[dict[str, Any], list[str]]:
    """Every 16-bit graph against torch at shapes that were not the export's, and a sentence for each that was not."""
    from export.check import check_against_torch, obstacle

    found, skipped = {}, []
    with build.stages.stage("check") as tick:
        for i, part in enumerate(build.components):
            tick(i, len(build.components), part.name)
            path = next((files[-1] for p, files in models[part.name].items() if build.form(part, p) == BASELINE), None)
            if reason := obstacle(path is not None, build.weights(part), build.options.memory_limit):
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
