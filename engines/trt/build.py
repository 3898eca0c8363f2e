"""Engines of an artifact, by one function over two builders: TensorRT's Python API and trtexec."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifact.errors import UserError, nearest
from artifact.files import remove_partials, write_text, written_whole
from artifact.lock import held
from artifact.manifest import Artifact
from engines.targets import Target, check_preset
from engines.trt import api, graph, layers, machine, plan, plugin, profiles, refit, script, trtexec, versions
from engines.trt.api import Progress
from engines.trt.job import Job, Options, Say
from engines.trt.plan import Plan
from engines.trt.profiles import Size
from engines.trt.timing import TimingCache
from engines.trt.versions import Version
from plugins.errors import PluginError

BUILDERS = ("auto", "api", "trtexec")


@dataclass
class Built:
    """`plans`: the engines that are there now. `script`: the same build for the device. `skipped`: what was not done,
    and why, a sentence each."""

    script: Path
    plans: list[Plan] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def build_engines(
    artifact: Artifact,
    preset: str,
    target: Target,
    sizes: Sequence[Size] = (),
    builder: str = "auto",
    options: Options = Options(),  # noqa: B008 (frozen)
    library: Path | None = None,
    script_only: bool = False,
    say: Say = print,
    progress: Progress | None = None,
) -> Built:
    """Build every engine of `preset` that is not there yet, and write the script that does so on the device.

    `sizes`: of images, the one to tune for first; see profiles.sizes_for. `builder`: "api", "trtexec", or the first
    of them that is here. `library`: the plugin's, where it is not to be built. Where this machine is no `target` or
    has no TensorRT, engines are skipped and said to be; asked for by name, a missing builder is a UserError. An
    engine appears whole, with all of its layers as the graph has them, or not at all.

    Raises UserError for a preset that the artifact or the target does not have, sizes that neither takes, and what
    TensorRT refuses.
    """
    _check_names(artifact, preset, builder)
    note = check_preset(target, preset)
    if target.sm is None:
        raise UserError(
            f"{target.title} needs no engines: `python -m engines.run {artifact.root}` runs as it is; "
            "name a GPU with --target."
        )
    if note:
        say(note)
    with held(artifact.root / plan.DIRECTORY):
        remove_partials(artifact.root / plan.DIRECTORY)
        chosen, version, why = (None, None, "") if script_only else _choose(builder, target)
        if version and options.refit and (version.major, version.minor) == versions.NO_REFIT:
            raise UserError(
                f"TensorRT {version} can lose a bias of an engine that is built to be refitted: leave out --refit, or "
                "use another version."
            )
        jobs = _jobs(artifact, preset, target, version or script.MAJORS[10], sizes, options)
        built = Built(script.write(artifact, preset, target, jobs))
        if why:
            built.skipped.append(f"No TensorRT engine was built: {why}; {_instead(built.script, target)}.")
        jobs = _with_plugin(artifact, target, jobs, version, library, built, say)
        if chosen and version and not built.skipped:
            for i, job in enumerate(jobs):
                say(f"{job.component} ({i + 1} of {len(jobs)})")
                built.plans.append(_one(artifact, job, chosen, say, progress))
    return built


def _check_names(artifact: Artifact, preset: str, builder: str) -> None:
    built = artifact.manifest["presets"]
    if preset not in built:
        raise UserError(f"Preset {preset!r} is not in {artifact.root}: {nearest(preset, built)}")
    if builder not in BUILDERS:
        raise UserError(f"There is no builder {builder!r}: {nearest(builder, list(BUILDERS))}")


def _choose(builder: str, target: Target) -> tuple[str | None, Version | None, str]:
    """The builder to use here and its TensorRT; or why nothing can be built, where nobody insisted."""
    sm, insisted = machine.sm(), builder != "auto"
    if sm is None:
        why = "this machine has no NVIDIA GPU"
    elif sm != target.sm:
        why = f"this machine's GPU is sm_{sm} and {target.title} is sm_{target.sm}"
    else:
        why, module = "neither the Python package tensorrt nor trtexec is here", versions.of_module()
        if builder != "trtexec" and module:
            if (module.major, module.minor) >= versions.OLDEST_API:
                return "api", module, ""
            why = f"the Python package tensorrt is {module}, which the Python builder is too new for"
        if builder != "api" and (tool := trtexec.find()):
            found = trtexec.version(tool)
            trtexec.check_version(found)
            return "trtexec", found, ""
        if builder == "trtexec":
            raise UserError(trtexec.HOW_TO_GET_IT)
        if builder == "api" and not module:
            why = "the Python package tensorrt is not here"
    if insisted:
        raise UserError(f"--builder {builder} cannot build an engine for {target.name}: {why}.")
    return None, None, why


def _instead(script: Path, target: Target) -> str:
    return f"run {script} on a {target.title}, or `python -m engines.build` there"


def _jobs(
    artifact: Artifact, preset: str, target: Target, version: Version, sizes: Sequence[Size], options: Options
) -> list[Job]:
    assert target.sm is not None
    chosen = profiles.sizes_for(artifact, target, sizes)
    cache = TimingCache.of(artifact.root / plan.DIRECTORY, target.sm, version)
    found = []
    for component in artifact.manifest["components"]:
        model = artifact.tensorrt(component, preset)
        shapes = profiles.profile(artifact, component, model, chosen, options.images)
        found.append(
            Job(
                component, preset, model, target.sm, version, shapes, cache, None, options.plugin_in_plan,
                options.refit, options.weight_streaming,
            )
        )  # fmt: skip
    return found


def _with_plugin(
    artifact: Artifact, target: Target, jobs: list[Job], version: Version | None, library: Path | None, built: Built,
    say: Say,
) -> list[Job]:  # fmt: skip
    """The jobs with the plugin's library, where they have 4-bit layers. Without one nothing is built."""
    needing = [bool(graph.read(job.model).plugins) for job in jobs]
    if not any(needing):
        return jobs
    try:
        path = plugin.provide(artifact, target, version or script.MAJORS[10], library, say)
    except PluginError as e:
        if version:
            raise
        built.skipped.append(
            f"The plugin's library for {target.title} was not built ({str(e).rstrip('.')}); put one into "
            f"{plugin.DIRECTORY}/sm{target.sm} with `python -m plugins.build --target {target.name}`."
        )
        return jobs
    return [replace(job, plugin=path) if needs else job for job, needs in zip(jobs, needing, strict=True)]


def _one(artifact: Artifact, job: Job, builder: str, say: Say, progress: Progress | None) -> Plan:
    """One engine, unless it is there or another preset has the same."""
    path = artifact.root / plan.DIRECTORY / plan.name(job.component, job.preset, job.sm, job.version)
    metadata = _metadata(artifact, job, builder)
    if present := _same(path, metadata):
        say(f"  {path.name} is there already")
        return present
    if builder == "api" and (refitted := _refitted(path, job, metadata, say)):
        return refitted
    for stale in (plan.sidecar(path), path, *(path.with_suffix(s) for s in (".layers.json", ".times.json"))):
        stale.unlink(missing_ok=True)
    if twin := _twin(path, job, metadata):
        say(f"  the same graph as that of {twin.path.name}, taken over")
        with written_whole(path) as partial:
            _link(twin.path, partial)
        with suppress(OSError), written_whole(path.with_suffix(".layers.json")) as partial:
            shutil.copyfile(twin.layers, partial)
        return plan.write(path, metadata | _of_the_build(twin))
    with written_whole(path) as partial:
        if builder == "api":
            made = api.build(job, partial, say, progress)
        else:
            with _waiting(f"trtexec builds {job.component}", progress):
                made = trtexec.build(job, partial, say)
        for line in layers.judge(layers.parse(made.layers), graph.read(job.model), f"{job.component} of {job.preset}"):
            say(f"  {line}")
    write_text(path.with_suffix(".layers.json"), made.layers)
    return plan.write(path, {**metadata, "activation_bytes": made.activation_bytes})


@contextmanager
def _waiting(what: str, progress: Progress | None) -> Iterator[None]:
    """trtexec tells no progress: one phase, begun and ended, so that at least its time runs."""
    if progress:
        progress(what, 0, 1)
    yield
    if progress:
        progress(what, 1, 1)


def _metadata(artifact: Artifact, job: Job, builder: str) -> dict[str, object]:
    return {
        "component": job.component,
        "preset": job.preset,
        "sm": str(job.sm),
        "tensorrt": str(job.version),
        "plugin_sha256": plan.sha256(job.plugin) if job.plugin else None,
        "plugin_in_plan": bool(job.plugin and job.plugin_in_plan),
        "onnx_sha256": plan.graph_sha256(artifact, job.model),
        "source_sha256": artifact.manifest["source"]["sha256"],
        "profiles": [profiles.to_json(job.profile)],
        "refittable": job.refit,
        "structure_sha256": refit.structure_sha256(artifact, job.model),
        "weight_streaming": job.weight_streaming,
        "builder": builder,
    }


def _of_the_build(built: Plan) -> dict[str, object]:
    """What its record knows of the build alone: another record of the same engine takes it over."""
    return {key: built.metadata[key] for key in ("builder", "activation_bytes") if key in built.metadata}


def _refitted(path: Path, job: Job, metadata: dict[str, object], say: Say) -> Plan | None:
    """The engine at `path` with the graph's new weights, where those are all that differs from what it was built of."""
    old = _same(path, metadata, frozenset({"builder", "onnx_sha256"}))
    if not job.refit or old is None or old.metadata.get("structure_sha256") != metadata["structure_sha256"]:
        return None
    try:
        with written_whole(path) as partial:
            refit.refit(job, path, partial)
    except UserError as e:
        say(f"  {path.name} is built again, for it cannot be refitted: {e}")
        return None
    say(f"  {path.name} was refitted with the graph's new weights")
    return plan.write(path, metadata | _of_the_build(old))


_SAME_BUT = frozenset({"builder", "structure_sha256"})  # the graph's own hash covers its structure


def _same(path: Path, metadata: dict[str, object], but: frozenset[str] = _SAME_BUT) -> Plan | None:
    """The engine at `path` if it is whole and its record says the same."""
    if not plan.sidecar(path).is_file():
        return None
    try:
        found = plan.read(path)
    except UserError:
        return None
    return found if all(found.metadata.get(k) == v for k, v in metadata.items() if k not in but) else None


def _twin(path: Path, job: Job, metadata: dict[str, object]) -> Plan | None:
    """An engine of the same component that another preset shares the graph with."""
    pattern = plan.name(job.component, "*", job.sm, job.version)
    others = (p for p in sorted(path.parent.glob(pattern)) if p != path)
    found = (_same(p, metadata, _SAME_BUT | {"preset"}) for p in others)
    return next((p for p in found if p), None)


def _link(source: Path, path: Path) -> None:
    """The same file under another name, a copy where the file system has no hard links."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
