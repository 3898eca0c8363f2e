"""Writing a bundle: an artifact's preset as a directory that a Jetson can use as it is, and as one archive."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import artifact as artifact_package
import engines
import plugins
from artifact.errors import UserError
from artifact.files import PARTIAL, as_user_error, sha256, write_json, write_text, written_whole
from artifact.manifest import Artifact, record
from engines.deploy import plugin, script
from engines.deploy.archive import write_archive
from engines.deploy.description import KNOWN, OFF, describe, pipeline_row
from engines.deploy.device.bundle import FORMAT, MANIFEST
from engines.deploy.graphs import copy_graph
from engines.deploy.jetpack import Release, release
from engines.deploy.readme import readme
from engines.deploy.samples import write_references
from engines.deploy.steps import step_tables
from engines.deploy.tokenizer import write_tokenizer
from engines.families import layout
from engines.instruction import instruction_tokens
from engines.pipeline import choose
from engines.shapes import graph_inputs, text_tokens
from engines.targets import Target
from engines.trt import graph, plan, profiles
from engines.trt.versions import Version
from plugins.architectures import for_capability

DIRECTORY = "deploy"
STEPS = range(1, 51)  # numbers of steps that a table is written for, beside the model's own
# Files of ours that run.py imports, byte for byte; each package's __init__.py is written anew where it imports more.
LIBRARY = (
    (artifact_package, ("__init__.py", "errors.py", "files.py", "positions.py", "sampling.py")),
    (plugins, ("__init__.py", "errors.py", "device.py")),
    (engines, ("metrics.py", "deploy/__init__.py", "deploy/device/*.py")),
)
KEPT = "engines"  # what build.sh made on this machine survives a new bundle: it judges itself whether it still fits


def write_bundle(
    artifact: Artifact, target: Target, preset: str | None = None, jetpack: str | None = None, out: Path | None = None
) -> Path:
    """Write deploy/ and deploy-<name>-<target>.tar.zst into `out` (default: the artifact); returns deploy/.

    `preset` None is the artifact's first, `jetpack` None the release most usual on `target`. The bundle draws images
    of the model's own size, or of the largest that the target is meant for. Equal artifacts give equal bytes. Raises
    UserError for a target without JetPack, a preset without a form for TensorRT, a scheduler without step tables, a
    damaged artifact and a full disk; then what was there before is still there.
    """
    preset, out = choose(artifact, preset), Path(out or artifact.root)
    row = release(target, jetpack)
    final, partial = out / DIRECTORY, out / f"{DIRECTORY}.{os.getpid()}{PARTIAL}"
    for component in artifact.manifest["components"]:
        artifact.tensorrt(component, preset)  # refuses before anything is written
    artifact = _sized(artifact, target)
    try:
        partial.mkdir(parents=True)
        _fill(partial, artifact, target, preset, row)
        if (final / KEPT).is_dir():
            os.replace(final / KEPT, partial / KEPT)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        name = f"{DIRECTORY}-{artifact.manifest['name']}-{target.name}"
        write_archive(final, out / f"{name}.tar.zst", name, {KEPT})
    except OSError as e:
        raise as_user_error(e, final) from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _sized(artifact: Artifact, target: Target) -> Artifact:
    """The artifact with the bundle's image size, and the pipeline's own call where the model does not say."""
    import diffusers

    manifest = artifact.manifest
    pipeline = pipeline_row(artifact).cls
    height, width = profiles.sizes_for(artifact, target)[0]
    parameters = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    defaults = {n: parameters[n].default for n in KNOWN | OFF if n in parameters}
    said = {n: d for n, d in defaults.items() if d is not None} | manifest["generation"]
    generation = said | {"height": height, "width": width}
    components = dict(manifest["components"])
    for name in artifact.component("text_encoder"):
        more = instruction_tokens(pipeline, generation, _tokenizer(artifact, name))
        components[name] = {**components[name], "instruction_tokens": more}
    return replace(artifact, manifest={**manifest, "generation": generation, "components": components})


def _fill(root: Path, artifact: Artifact, target: Target, preset: str, row: Release) -> None:
    """Every file of the bundle, the manifest and the list of hashes last."""
    manifest, said = artifact.manifest, describe(artifact, preset)
    assert target.compute_capability is not None
    capability = target.compute_capability
    graphs = [_graph(root, artifact, name, preset, target, row) for name in manifest["components"]]
    plugin.copy_source(root / "plugin")
    library = plugin.add_library(root / "plugin", capability, row.shell)
    library["architecture"] = for_capability(capability).name
    content: dict[str, Any] = {
        "format": FORMAT,
        "name": manifest["name"],
        "preset": preset,
        "target": target.name,
        "capability": capability,
        "sm": str(target.sm),
        "jetpack": row.name,
        "tensorrt": row.tensorrt,
        "source": manifest["source"],
        "dtype": manifest["dtype"],
        "components": {g.component: _entry(artifact, g) for g in graphs},
        "tokenizers": _tokenizers(root, artifact, said["text"]),
        "plugin": library,
        **said,
    }
    content["references"], skipped = write_references(root, artifact, said["generation"])
    content["skipped"] = [*skipped, *([f"The plugin's library for aarch64: {library['why']} build.sh builds it on the "
                                       "device."] if library["built"] != "here" else [])]  # fmt: skip
    _write_steps(root, artifact, said)
    _copy_library(root / "lib")
    for name, to in (("run.py", "run.py"), ("denoise.cpp", "example/denoise.cpp"),
                     ("example-CMakeLists.txt", "example/CMakeLists.txt")):  # fmt: skip
        _copy(script.TEMPLATES / name, root / to)
    write_text(root / "build.sh", script.build_script(content, row, graphs))
    for name in ("build.sh", "run.py"):
        (root / name).chmod(0o755)
    write_text(root / "README.md", readme(content, target, sum(g.nbytes for g in graphs)))
    content["files"] = record(root, _files(root))
    write_json(root / MANIFEST, content)
    sums = [f"{sha256(root / name)}  {name}\n" for name in sorted(_files(root))]
    write_text(root / "SHA256SUMS", "".join(sums))


def _files(root: Path) -> list[str]:
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]


def _graph(root: Path, artifact: Artifact, name: str, preset: str, target: Target, row: Release) -> script.Graph:
    """Copy one component's graph into the bundle."""
    model = artifact.tensorrt(name, preset)
    files = copy_graph(model, root / "models" / name / model.name)
    generation = artifact.manifest["generation"]
    return script.Graph(
        name,
        root,
        f"models/{name}/{model.name}",
        f"{KEPT}/{plan.name(name, preset, target.sm or 0, Version.parse(row.tensorrt))}",
        plan.graph_sha256(artifact, model),
        sum(f.stat().st_size for f in files),
        profiles.profile(artifact, name, model, [(generation["height"], generation["width"])]),
        bool(graph.read(model).plugins),
    )


def _entry(artifact: Artifact, made: script.Graph) -> dict[str, Any]:
    """The manifest's entry of a component: `inputs` by name with the shape that one image takes."""
    component = artifact.manifest["components"][made.component]
    return {
        "role": component["role"],
        "onnx": made.file,
        "onnx_sha256": made.sha256,
        "plan": made.plan,
        "plugin": made.plugin,
        "inputs": {i.name: list(made.profile[i.name].opt) for i in graph_inputs(made.root / made.file)},
        "outputs": component["outputs"],
    }


def _tokenizers(root: Path, artifact: Artifact, rule: dict[str, Any]) -> dict[str, str]:
    """Write every text encoder's tokenizer; {text encoder: file}."""
    manifest = artifact.manifest
    prompts = (manifest.get("references") or {}).get("prompts", [])
    template = layout(manifest["components"]).template
    written = {}
    for name in artifact.component("text_encoder"):
        # What is dropped behind the encoder comes on top of a prompt's own length (device/text.py).
        more = template or manifest["components"][name]["instruction_tokens"]
        length = text_tokens(artifact, name) - more
        written[name] = f"tokenizer/{name}.json"
        fixed = manifest["components"][name]["class"].startswith("CLIP")
        folder, to = _tokenizer(artifact, name), root / written[name]
        write_tokenizer(folder, to, length, fixed, pipeline_row(artifact), rule, prompts)
    return written


def _tokenizer(artifact: Artifact, encoder: str) -> Path:
    """The folder of a text encoder's tokenizer."""
    folder = artifact.manifest["folders"].get(encoder.replace("text_encoder", "tokenizer"))
    if folder is None:
        raise UserError(f"{artifact.root} has no tokenizer of {encoder}: build the artifact again.")
    return artifact.path(folder)


def _write_steps(root: Path, artifact: Artifact, said: dict[str, Any]) -> None:
    generation, latents = said["generation"], said["latents"]
    config = artifact.manifest["components"][said["denoiser"]]["config"]
    packed = latents["packed"]
    side = (2 if packed else config.get("patch_size", 2)) * latents["scale"]
    tokens = (generation["height"] // side) * (generation["width"] // side)
    counts = sorted({*STEPS, generation["num_inference_steps"]})
    folder = artifact.path(artifact.manifest["folders"]["scheduler"])
    time_scale = 1 / 1000 if packed else config.get("timestep_scale", 1.0)
    tables = step_tables(folder, counts, said["pipeline"], tokens, time_scale)
    write_text(root / "steps.json", json.dumps(tables, separators=(",", ":")) + "\n")


def _copy_library(lib: Path) -> None:
    """The files of LIBRARY below `lib`, where run.py imports them by their own names."""
    for package, patterns in LIBRARY:
        source = Path(inspect.getfile(package)).parent
        for pattern in patterns:
            for path in sorted(source.glob(pattern)):
                _copy(path, lib / source.name / path.relative_to(source))
    write_text(lib / "engines" / "__init__.py", '"""The part of engines/ that a device needs."""\n')


def _copy(path: Path, to: Path) -> None:
    with written_whole(to) as partial:
        shutil.copyfile(path, partial)
