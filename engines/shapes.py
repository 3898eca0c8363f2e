"""Sizes of every graph's inputs for an image of a given size: what profiles, predictions and trtexec ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.families import layout

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Input:
    """An input of a graph: `dims` holds an int where the size is fixed, the axis's name where it is not."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]

    def shape(self, sizes: Mapping[str, int]) -> Shape:
        """The shape with every named axis replaced. Raises UserError for an axis that `sizes` does not know."""
        for dim in self.dims:
            if isinstance(dim, str) and dim not in sizes:
                raise UserError(f"Input {self.name!r} has an axis {dim!r} whose size is unknown: rebuild the artifact.")
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.dims)


def graph_inputs(model: Path) -> list[Input]:
    """The inputs of the .onnx file in its order, read without its weights."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    constants = {t.name for t in graph.initializer}
    found = []
    for value in graph.input:
        if value.name not in constants:
            tensor = value.type.tensor_type
            dims = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
            found.append(Input(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims))
    return found


def axis_sizes(artifact: Artifact, component: str, images: int, height: int, width: int) -> dict[str, int]:
    """The size of every named axis of a component's graph when `images` images of height x width pixels are drawn.

    A denoiser that sees both halves of classifier-free guidance in one call has twice as many rows.
    """
    manifest = artifact.manifest
    components = manifest["components"]
    row = components[component]
    family = layout(components)
    scale = family.latents.scale
    rows, columns = height // scale, width // scale
    guided = manifest["generation"].get("guidance_scale", 0.0) > 1.0
    doubled = row["role"] == "denoiser" and family.joined_guidance and guided
    return {
        "batch": images * (2 if doubled else 1),
        "height": rows,
        "width": columns,
        "image_height": height,
        "image_width": width,
        "tokens": (rows // 2) * (columns // 2),
        "sequence": text_tokens(artifact, component),
    }


def text_tokens(artifact: Artifact, component: str) -> int:
    """Tokens of a padded prompt as this component sees them; 0 for the VAE.

    CLIP's length is fixed by its position table. That of T5 and Gemma-2, and of a denoiser that reads them, is the
    pipeline's `max_sequence_length`; SD3's denoiser reads CLIP's before them. That is also the most of Qwen-Image's,
    which pads no prompt; its text encoder sees an instruction before it, and SANA's one of another length.
    """
    components = artifact.manifest["components"]
    row = components[component]
    if row["role"] == "denoiser":
        asked = artifact.manifest["generation"].get("max_sequence_length")
        encoders = artifact.component("text_encoder")
        first = text_tokens(artifact, encoders[0]) if not asked or layout(components).both_texts else 0
        return first + int(asked or 0)
    if row["role"] != "text_encoder":
        return 0
    fixed = row["config"].get("max_position_embeddings") if row["class"].startswith("CLIP") else None
    before = layout(components).template or row.get("instruction_tokens", 0)
    return int(fixed or artifact.manifest["generation"]["max_sequence_length"] + before)


def input_shapes(
    artifact: Artifact,
    component: str,
    model: Path,
    images: int = 1,
    height: int | None = None,
    width: int | None = None,
) -> dict[str, Shape]:
    """Shapes of the inputs of `model`, a graph of `component`, in its order; sizes in pixels, the model's if None.

    Raises UserError where an axis of the graph is not known.
    """
    generation = artifact.manifest["generation"]
    sizes = axis_sizes(artifact, component, images, height or generation["height"], width or generation["width"])
    return {i.name: i.shape(sizes) for i in graph_inputs(model)}
