"""Graphs and solved layers become the written models: the portable form, and what TensorRT parses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from artifact.errors import UserError
from export.components import Component
from export.options import BASELINE, Options
from export.plan import Build
from passes.layers import Layer
from passes.policy import Policy
from passes.presets import PRESETS, plugin_form
from passes.solved import Solved
from passes.verify_tensorrt import objection
from passes.write import write_model

Models = dict[str, dict[str, list[Path]]]  # {component: {preset: files, the .onnx last}}


@dataclass(frozen=True)
class Written:
    """The models of a build. Every component is there for every preset; presets share what is alike.

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
    build: Build,
    graphs: Mapping[str, ir.Model],
    solved: Mapping[str, Mapping[str, Solved]],
    refused: Mapping[str, str],
) -> Written:
    """Write every model; those of `refused` components (see `refusals`) in the portable form alone.

    `solved`: {component: {form: layers}}.
    """
    written = Written({}, {}, [f"No TensorRT form of {name}: {reason}." for name, reason in refused.items()])
    unfit = []
    with build.stages.stage("rewrite") as tick:
        for i, part in enumerate(build.components):
            portable, tensorrt = {}, {}
            for form in build.forms(part):
                tick(i, len(build.components), f"{part.name} {form}")
                layers = solved.get(part.name, {}).get(form, {})
                portable[form] = _portable(build, part, graphs[part.name], form, layers)
                if layers and build.options.dtype != "float16":
                    unfit.append(f"{part.name} {form}")
                elif part.name not in refused:
                    tensorrt[form] = _lowered(build, part, portable[form], len(layers)) if layers else portable[form]
            wanted = {preset: build.form(part, preset) for preset in build.presets}
            written.portable[part.name] = {p: portable[f] for p, f in wanted.items()}
            if tensorrt:
                written.tensorrt[part.name] = {p: tensorrt[f] for p, f in wanted.items() if f in tensorrt}
    if unfit:
        written.skipped.append(
            f"No plugin form of {', '.join(unfit)}: the plugin computes in float16 and these graphs are float32; build "
            "with --dtype float16 for TensorRT."
        )
    return written


def _portable(build: Build, part: Component, graph: ir.Model, form: str, layers: Solved) -> list[Path]:
    """Write the portable form; the graph itself stays as it is."""
    model = PRESETS[form].apply(graph.clone(), build.policy(part), layers)
    return write_model(model, build.out / part.name / f"{form}.onnx")


def _lowered(build: Build, part: Component, portable: list[Path], layers: int) -> list[Path]:
    """Write the plugin form of a portable one, from its file; what is not 4-bit stays in the portable form's data.

    A graph that stays float32 in a 16-bit pipeline is one that was trained in bfloat16, with values beyond float16's
    range: its plugin nodes compute in bfloat16.
    """
    path = portable[-1]
    narrow = ir.DataType.BFLOAT16 if part.dtype(build.options.dtype) == "float32" else None
    model = plugin_form(build.options.reserve_rank, layers, narrow)(ir.load(path)).model
    return write_model(model, path.with_name(f"{path.stem}.trt.onnx"), shared=portable[:-1])
