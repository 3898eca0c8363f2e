"""What the manifest says of a build, and the files that lie beside the models."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from artifact.files import written_whole
from engines.instruction import instruction_tokens
from export.components import Component
from export.plan import Build
from export.rewrite import Models, Written
from export.source import Source
from passes.layers import Layer
from passes.solved import Solved
from passes.solver.solved import ARRAYS


def copy_folders(build: Build) -> dict[str, str]:
    """Tokenizers and scheduler: what diffusers and transformers load besides graphs."""
    folders = {}
    for name in build.source.modules:
        if name.startswith(("tokenizer", "scheduler")):
            for path in sorted((build.source.root / name).glob("*")):
                if path.suffix in (".json", ".txt", ".model"):
                    with written_whole(build.out / name / path.name) as partial:
                        shutil.copyfile(path, partial)
            folders[name] = name
    return folders


def describe_components(build: Build, graphs: Mapping[str, ir.Model], models: Written) -> dict[str, Any]:
    """The manifest's `components`."""

    def paths(models: Models, component: str) -> dict[str, str]:
        return {n: str(files[-1].relative_to(build.out)) for n, files in models.get(component, {}).items()}

    described = {}
    for part in build.components:
        graph = graphs[part.name].graph
        described[part.name] = {
            "role": part.role,
            "module": part.module,
            "class": part.cls,
            "config": {k: v for k, v in part.config.items() if k != "_name_or_path"},
            "models": paths(models.portable, part.name),
            "tensorrt": paths(models.tensorrt, part.name),
            "inputs": [v.name for v in graph.inputs],
            "outputs": [v.name for v in graph.outputs],
        } | text_settings(build.source, part)
    return described


def text_settings(source: Source, part: Component) -> dict[str, int]:
    """What the pipeline puts before a prompt of this text encoder, in tokens; {} where nothing."""
    if part.role != "text_encoder":
        return {}
    folder = source.root / part.module.replace("text_encoder", "tokenizer")
    more = instruction_tokens(source.pipeline, source.generation, folder)
    return {"instruction_tokens": more} if more else {}


def describe_layers(
    build: Build, layers: Mapping[str, Sequence[Layer]], solved: Mapping[str, Mapping[str, Solved]]
) -> dict[str, Any]:
    """The manifest's `layers`: {preset: {component: {layer: row}}}."""
    found: dict[str, Any] = {}
    for part in build.quantised:
        for preset in build.presets:
            if (form := build.form(part, preset)) in solved.get(part.name, {}):
                found.setdefault(preset, {})[part.name] = layer_rows(layers[part.name], solved[part.name][form])
    return found


def layer_rows(layers: Sequence[Layer], solved: Solved) -> dict[str, Any]:
    """The rows of one component in the manifest's `layers` of one preset."""
    rows = {}
    for layer in layers:
        found = solved[layer.name]
        specs = [found.layer.spec(field) for field in ARRAYS if field != "qweight"]
        # Codes count one to a byte there and are packed two to a byte in the file.
        size = sum(math.prod(shape) * kind.itemsize for kind, shape in specs)
        size += math.prod(found.layer.spec("qweight")[1]) // 2
        rows[layer.name] = {
            "error": found.layer.error, "alpha": found.layer.alpha, "beta": found.layer.beta,
            "rounds": found.layer.rounds, "rank": found.rank, "k": layer.k, "n": layer.n, "scheme": layer.scheme,
            "act_bits": found.recipe.act_bits, "group_size": found.recipe.group_size,
            "act_signed": found.recipe.act_signed, "weights": list(layer.weights), "columns": layer.columns,
            "bytes": size, "bytes_16bit": 2 * layer.n * (layer.k + 1),
        }  # fmt: skip
    return rows


def pipeline_settings(index: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of model_index.json that are settings of the pipeline and no modules."""
    return {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, (bool, int, float, str))}


def remove_stale(out: Path, files: Mapping[str, Any]) -> None:
    """Delete what an earlier build left and this one lacks: other presets' models, references, its report, its bundle.

    Engines stay: they know which graph they were built from.
    """
    for path in [*out.glob("*/*.onnx*"), *(p for p in out.glob("references/**/*") if p.is_file())]:
        if str(path.relative_to(out)) not in files:
            path.unlink()
    for directory in ("report", "deploy"):
        shutil.rmtree(out / directory, ignore_errors=True)
    for path in out.glob("deploy-*.tar.zst"):
        path.unlink()
