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
from export.fake_module import fake_module
from export.families import pipeline_row
from passes.layers import Layer

WEIGHT = ".weight"
DENOISER = "denoiser"


@dataclass(frozen=True)
class Part:
    """One component: `shapes` of its graph's weights {initializer: shape}, and by which names files know them.

    `layers`: its 4-bit layers. `unread`: weights that the module has and its graph does not read.
    """

    component: Component
    shapes: Mapping[str, tuple[int, ...]]
    layers: tuple[Layer, ...]
    unread: frozenset[str]

    @cached_property
    def quantised(self) -> frozenset[str]:
        """The weights that its 4-bit layers are made of."""
        return frozenset(weight for layer in self.layers for weight in layer.weights)

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
        found = {alias for name in self.unread for alias in (name, *self.component.row.file_names(name))}
        return {name.removesuffix(WEIGHT) for name in found} - set(self.names)


@dataclass(frozen=True)
class Model:
    """`parts` by the pipeline's names for them ("transformer", "text_encoder_2")."""

    pipeline: str
    parts: Mapping[str, Part]

    @property
    def denoiser(self) -> Part:
        return next(p for p in self.parts.values() if p.component.role == DENOISER)


def describe(artifact: Artifact, base: Mapping[str, Any]) -> Model:
    """The model of an artifact, from `base`, its manifest without a LoRA. Raises UserError for an unknown class."""
    parts: dict[str, Part] = {}
    configs = {entry["module"]: entry["config"] for entry in base["components"].values()}
    upcast = pipeline_row(base["pipeline"]).float32(configs.__getitem__)
    for name, entry in base["components"].items():
        if entry["role"] not in (DENOISER, "text_encoder"):
            continue
        module_name = entry["module"]
        component = Component(name, module_name, entry["role"], entry["class"], entry["config"], module_name in upcast)
        try:
            module, _ = fake_module(component, "float32")
        except (KeyError, StopIteration):
            raise UserError(
                f"{artifact.root}'s {name} is a {entry['class']}, which this version does not know: build it again."
            ) from None
        rows: Mapping[str, Any] = next((r[name] for r in base["layers"].values() if name in r), {})
        read = set(ir.load(artifact.path(next(iter(entry["models"].values())))).graph.initializers)
        read |= {weight for row in rows.values() for weight in row["weights"]}
        shapes = {n: tuple(p.shape) for n, p in module.named_parameters(remove_duplicate=False) if n.endswith(WEIGHT)}
        parts[module_name] = Part(
            component,
            {n: s for n, s in shapes.items() if n in read and len(s) > 1},
            tuple(_layer(n, row) for n, row in rows.items()),
            frozenset(set(shapes) - read),
        )
    return Model(base["pipeline"], parts)


def _layer(name: str, row: Mapping[str, Any]) -> Layer:
    """A layer as far as the manifest tells: what it is made of, not what it reads."""
    columns = None if row["columns"] is None else (row["columns"][0], row["columns"][1])
    weights = tuple(row["weights"])
    module = weights[0].removesuffix(WEIGHT)
    return Layer(name, weights, (), columns, module, name, row["k"], row["n"], row["scheme"], False)
