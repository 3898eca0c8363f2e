"""Which shapes an engine is built for: one optimisation profile from an image's sizes.

TensorRT picks its kernels at `opt` and reserves memory for `max`. Both are kept as small as the images asked for:
a range that nobody draws costs memory on a device that has little.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.families import layout
from engines.shapes import Input, Shape, axis_sizes, graph_inputs, text_tokens
from engines.targets import Target

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Range:
    """The shapes of one input. `dynamic`: the graph leaves some axis open, so a profile must name it."""

    min: Shape
    opt: Shape
    max: Shape
    dynamic: bool = True


Profile = dict[str, Range]


def parse_size(text: str) -> Size:
    """Of "768" or, width first as pictures are named, "1024x768". Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if not found:
        raise UserError(f"--resolution is {text!r}: give one like 768 or 1024x768, several separated by commas.")
    width = int(found[1])
    return int(found[2] or width), width


def sizes_for(artifact: Artifact, target: Target, asked: Sequence[Size] = ()) -> list[Size]:
    """The image sizes to build for, the one to tune for first.

    Without `asked`: the model's own size, or the largest of its shape that `target` is meant for, and half of that.
    Raises UserError for a size that the model or the target does not take.
    """
    generation = artifact.manifest["generation"]
    multiple = layout(artifact.manifest["components"]).multiple
    most = target.max_side
    if not asked:
        own = (generation["height"], generation["width"])
        shrink = min(1.0, (most or max(own)) / max(own))
        full = tuple(max(multiple, int(side * shrink) // multiple * multiple) for side in own)
        half = tuple(max(multiple, side // 2 // multiple * multiple) for side in full)
        return [(full[0], full[1]), (half[0], half[1])]
    for height, width in asked:
        for what, side in (("height", height), ("width", width)):
            if side < multiple or side % multiple:
                raise UserError(
                    f"--resolution {width}x{height} has a {what} of {side}: {artifact.root.name} takes multiples of "
                    f"{multiple}."
                )
        if most and max(height, width) > most:
            raise UserError(
                f"--resolution {width}x{height} is too much for {target.title}, whose engines go up to {most} pixels "
                "a side: give a smaller one."
            )
    return list(asked)


def profile(artifact: Artifact, component: str, model: Path, sizes: Sequence[Size], images: int = 1) -> Profile:
    """Shapes of the inputs of `model`, a graph of `component`, for 1 to `images` images of any of `sizes`.

    A denoiser that sees both halves of the guidance in one call gets twice the rows at most, and one at least: a
    caller may switch the guidance off. Text may be as short as one token where the pipeline pads no prompt; where it
    puts an instruction before it, a negative prompt goes without.
    """
    manifest = artifact.manifest
    alone = {"batch": 1}
    family = layout(manifest["components"])
    joined = manifest["components"][component]["role"] == "denoiser" and family.joined_guidance
    if family.template:
        alone["sequence"] = 1
    elif more := manifest["components"][component].get("instruction_tokens", 0):
        alone["sequence"] = text_tokens(artifact, component) - more
    found = {}
    for given in graph_inputs(model):
        shapes = [given.shape(axis_sizes(artifact, component, images, h, w)) for h, w in sizes]
        batch = {"batch": images * (2 if joined else 1)}
        widest = [given.shape(axis_sizes(artifact, component, images, h, w) | batch) for h, w in sizes]
        single = [given.shape(axis_sizes(artifact, component, 1, h, w) | alone) for h, w in sizes]
        low, high = (tuple(map(pick, *s)) if len(s) > 1 else s[0] for pick, s in ((min, single), (max, widest)))
        found[given.name] = Range(low, shapes[0], high, _dynamic(given))
    return found


def to_json(profile: Profile) -> dict[str, Any]:
    """As a plan's record holds it."""
    return {n: {"min": list(r.min), "opt": list(r.opt), "max": list(r.max)} for n, r in profile.items()}


def _dynamic(given: Input) -> bool:
    return any(isinstance(d, str) for d in given.dims)
