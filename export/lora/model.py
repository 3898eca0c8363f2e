"""What an artifact has that a LoRA may change: its 16-bit weights by name, and the layers that hold them in 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

from artifact.errors import UserError
from artifact.manifest import Artifact
from export.components import Component
from passes.layers import Layer, find_layers, quantised
from passes.policy import Policy
from passes.presets import layered

WEIGHT = ".weight"
BASELINE = "fp16"
DENOISER = "denoiser"


@dataclass(frozen=True)
class Part:
    """One component: `shapes` of its graph's weights {initializer: shape}, and by which names files know them."""

    component: Component
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def names(self) -> dict[str, str]:
        """{name of a linear as checkpoints and trainers have it: initializer}."""
        row = self.component.row
        return {
            alias.removesuffix(WEIGHT): weight
            for weight in self.shapes
            for alias in (*reversed(row.file_names(weight)), weight)
        }

    @cached_property
    def underscored(self) -> dict[str, str]:
        """The same with "_" for ".", as kohya's trainer writes them."""
        return {name.replace(".", "_"): weight for name, weight in self.names.items()}

    @cached_property
    def unused(self) -> set[str]:
        """Linears that the module has and its graph does not read, as SDXL's last text layer: a LoRA has no effect."""
        from export.fake_module import fake_module

        module, _ = fake_module(self.component, "float32")
        names = {name for name, _ in module.named_parameters() if name.endswith(WEIGHT)}
        found = {alias for name in names for alias in (name, *self.component.row.file_names(name))}
        return {name.removesuffix(WEIGHT) for name in found} - set(self.names)


@dataclass(frozen=True)
class Model:
    """`parts` by the pipeline's names for them ("transformer", "text_encoder_2"); `layers` of the denoiser."""

    pipeline: str
    parts: Mapping[str, Part]
    layers: tuple[Layer, ...]

    @property
    def denoiser(self) -> Part:
        return next(p for p in self.parts.values() if p.component.role == DENOISER)

    @cached_property
    def quantised_weights(self) -> set[str]:
        """The denoiser's initializers that its 4-bit layers are made of."""
        return {weight for layer in self.layers for weight in layer.weights}


def describe(artifact: Artifact, base: Mapping[str, Any]) -> Model:
    """The model of an artifact, from `base`, its manifest without a LoRA. Raises UserError for an unknown class."""
    parts: dict[str, Part] = {}
    layers: tuple[Layer, ...] = ()
    for name, entry in base["components"].items():
        if entry["role"] not in (DENOISER, "text_encoder"):
            continue
        component = Component(name, entry["module"], entry["role"], entry["class"], entry["config"])
        try:
            row = component.row
        except (KeyError, StopIteration):
            raise UserError(
                f"{artifact.root}'s {name} is a {entry['class']}, which this version does not know: build it again."
            ) from None
        graph = ir.load(artifact.path(entry["models"][BASELINE]))
        shapes = {n: tuple(v.shape.numpy()) for n, v in graph.graph.initializers.items() if v.shape is not None}
        parts[entry["module"]] = Part(component, {n: s for n, s in shapes.items() if n.endswith(WEIGHT) and len(s) > 1})
        if component.role == DENOISER:
            policy = Policy(row.quantise, row.weight_only)
            layers = tuple(quantised(find_layers(layered(policy)(graph).model.graph, policy)))
    return Model(base["pipeline"], parts, layers)
