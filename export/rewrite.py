"""Graphs and solved layers become the written models: the portable form, and what TensorRT parses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from artifact.errors import UserError
from export.components import Component
from export.options import Options
from export.plan import Build
from passes.layers import Layer
from passes.policy import Policy
from passes.presets import PRESETS, plugin_form
from passes.solved import Solved
from passes.verify_tensorrt import objection
from passes.write import write_model

BASELINE = "fp16"
Models = dict[str, dict[str, list[Path]]]  # {component: {preset: files, the .onnx last}}


@dataclass(frozen=True)
class Written:
    """The models of a build. Every component is there for every preset; only the denoiser's differ.

    A graph without 4-bit layers is one file in both forms: TensorRT parses the portable one. `skipped` says what
    `tensorrt` lacks, and why.
    """

    portable: Models
    tensorrt: Models
    skipped: list[str]

    @property
    def files(self) -> set[Path]:
        """Every file written."""
        models = [*self.portable.values(), *self.tensorrt.values()]
        return {path for presets in models for files in presets.values() for path in files}


def refusals(build: Build, graphs: Mapping[str, ir.Model], gpu: bool) -> dict[str, str]:
    """{component: why TensorRT would not parse it}, known before anything is solved.

    Raises UserError where there is one and the target is a GPU, for which the artifact would be of no use.
    """
    found = {}
    for part in build.components:
        reason = objection(PRESETS[BASELINE].apply(graphs[part.name].clone(), Policy(), {}))
        if reason is not None:
            found[part.name] = reason
    if found and gpu:
        name, reason = next(iter(found.items()))
        raise UserError(
            f"TensorRT cannot parse {build.source.name}'s {name}: {reason}. Build with --target cpu for onnxruntime, "
            "or report the model's architecture."
        )
    return found


def check_reserve(options: Options, layers: Sequence[Layer]) -> None:
    """Raises UserError where more rank is to be kept free than any layer's weight could have."""
    most = max((min(layer.k, layer.n) for layer in layers), default=0)
    if layers and options.reserve_rank > most:
        raise UserError(
            f"--reserve-rank is {options.reserve_rank}, but no layer has more than {most}: give at most that."
        )


def rewrite(
    build: Build, graphs: Mapping[str, ir.Model], solved: Mapping[str, Solved], refused: Mapping[str, str]
) -> Written:
    """Write every model; those of `refused` components (see `refusals`) in the portable form alone."""
    presets = build.options.presets
    written = Written({}, {}, [f"No TensorRT form of {name}: {reason}." for name, reason in refused.items()])
    with build.stages.stage("rewrite") as tick:
        for i, part in enumerate(build.components):
            denoises = part is build.denoiser
            portable, tensorrt = {}, {}
            for name in presets if denoises else [BASELINE]:
                tick(i, len(build.components), f"{part.name} {name}")
                layers = solved.get(name, {})
                portable[name] = _portable(build, part, graphs[part.name], name, layers)
                if part.name not in refused and (not layers or _half(build)):
                    tensorrt[name] = _lowered(build, portable[name], name, len(layers)) if layers else portable[name]
            written.portable[part.name] = portable if denoises else dict.fromkeys(presets, portable[BASELINE])
            if tensorrt:
                written.tensorrt[part.name] = tensorrt if denoises else dict.fromkeys(presets, tensorrt[BASELINE])
    if not _half(build) and solved:
        written.skipped.append(
            f"No plugin form of {', '.join(solved)}: the plugin computes in float16 and the graphs are "
            f"{build.options.dtype}; build with --dtype float16 for TensorRT."
        )
    return written


def _half(build: Build) -> bool:
    """Whether the denoiser's graph has a type that the plugin computes in."""
    return build.denoiser.dtype(build.options.dtype) == "float16"


def _portable(build: Build, part: Component, graph: ir.Model, preset: str, layers: Solved) -> list[Path]:
    """Write the portable form; the graph itself stays as it is."""
    policy = build.policy if part is build.denoiser else Policy()
    model = PRESETS[preset].apply(graph.clone(), policy, layers)
    return write_model(model, build.out / part.name / f"{preset}.onnx")


def _lowered(build: Build, portable: list[Path], preset: str, layers: int) -> list[Path]:
    """Write the plugin form of a portable one, from its file; what is not 4-bit stays in the portable form's data."""
    path = portable[-1]
    model = plugin_form(build.options.reserve_rank, at_least=layers)(ir.load(path)).model
    return write_model(model, path.with_name(f"{preset}.trt.onnx"), shared=portable[:-1])
