"""From the names in a LoRA file to the weights of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from artifact.errors import UserError
from export.lora.file import LoraFile, Pair, paired
from export.lora.model import Model, Part

Target = tuple[str, str]  # (module of the pipeline, initializer of its graph)
_OF_DENOISER = ("base_model.model.", "diffusion_model.")
_KOHYA_DENOISER = ("lora_unet_", "lora_transformer_")
_KOHYA_TEXT = re.compile(r"lora_te([123]?)_(.*)")
_COMFY_TEXT = re.compile(r"(?:text_encoders\.)?(clip_l|clip_g|t5xxl)\.(?:transformer\.)?(.*)")
_NUMBER = {"": 1, "1": 1, "2": 2, "3": 3, "clip_l": 1, "clip_g": 2, "t5xxl": 3}


@dataclass(frozen=True)
class Adapter:
    """A LoRA laid over a model: the pair of every weight that it changes, and what it changes without effect."""

    file: LoraFile
    pairs: Mapping[Target, Pair]
    unused: tuple[str, ...]


def lay_over(file: LoraFile, model: Model) -> Adapter:
    """Find the weight of every pair. Raises UserError where the model lacks one, or has it in another shape.

    A name that is the model's own, in diffusers', PEFT's or kohya's spelling, is looked up; every other is given to
    diffusers' converter for the pipeline, one linear at a time, so that what it cannot convert is known by name.
    """
    found: dict[Target, Pair] = {}
    unused: list[str] = []
    unknown: list[str] = []
    for pair in file.pairs:
        target = _find(pair.name, model)
        here = {target: pair} if target else _converted(file.path, pair, model)
        if not here:
            (unused if _is_unused(pair.name, model) else unknown).append(pair.name)
        for at, piece in here.items():
            if at in found:
                raise UserError(
                    f"{file.path} has {at[0]}.{at[1]} twice, the second time as {piece.name!r}: save it again."
                )
            found[at] = piece
    if unknown:
        raise _strange(file, unknown, model)
    for (module, weight), pair in found.items():
        _check_shape(file.path, pair, model.parts[module].shapes[weight], model.parts[module])
    if not found:
        raise UserError(f"{file.path} changes nothing of this model: it has only layers that no graph reads.")
    return Adapter(file, found, tuple(unused))


def _find(name: str, model: Model) -> Target | None:
    """The weight that a name means without conversion, None where there is none."""
    for module, part, rest, underscored in _readings(name, model):
        weight = (part.underscored if underscored else part.names).get(rest)
        if weight is not None:
            return module, weight
    return None


def _readings(name: str, model: Model) -> list[tuple[str, Part, str, bool]]:
    """(module, its part, the name within it, whether "." is written "_"): what a name may mean."""
    denoiser = model.denoiser
    module = denoiser.component.module
    found = []
    for prefix in _KOHYA_DENOISER:
        if name.startswith(prefix):
            found.append((module, denoiser, name.removeprefix(prefix), True))
    for pattern, underscored in ((_KOHYA_TEXT, True), (_COMFY_TEXT, False)):
        text = pattern.fullmatch(name)
        if text and (encoder := _text_encoder(_NUMBER[text[1]], model)):
            found.append((encoder.component.module, encoder, text[2], underscored))
    for prefix in ("", *_OF_DENOISER):
        if name.startswith(prefix):
            found.append((module, denoiser, name.removeprefix(prefix), False))
    first, _, rest = name.partition(".")
    if first in model.parts:
        found.append((first, model.parts[first], rest, False))
    return found


def _text_encoder(number: int, model: Model) -> Part | None:
    """The text encoder that a number means.

    The third is T5 to kohya and ComfyUI, whatever the pipeline calls it: FLUX has it as its second.
    """
    part = model.parts.get("text_encoder" if number == 1 else f"text_encoder_{number}")
    if part is None and number == 3:
        return next((p for p in model.parts.values() if p.component.cls == "T5EncoderModel"), None)
    return part


def _is_unused(name: str, model: Model) -> bool:
    return any(
        rest in ({n.replace(".", "_") for n in part.unused} if underscored else part.unused)
        for _, part, rest, underscored in _readings(name, model)
    )


def _converted(path: Path, pair: Pair, model: Model) -> dict[Target, Pair]:
    """The pair under the names that diffusers gives it; several where it splits a fused one, none where it cannot.

    Alphas are in the scale already: the converters see none.
    """
    found: dict[Target, Pair] = {}
    named = _by_diffusers(pair, model)
    try:
        ends = paired(path, named)
    except UserError:
        return {}
    for name, keys in ends.items():
        target = _find(name, model)
        if target is None:
            return {}
        found[target] = replace(pair, down=named[keys[0]], up=named[keys[1]])
    return found


def _by_diffusers(pair: Pair, model: Model) -> dict[str, np.ndarray]:
    """The two matrices under PEFT's names, as the pipeline class and diffusers' own tables of old names have them."""
    import diffusers
    import torch
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    state: Any = {key: torch.from_numpy(m) for key, m in zip(pair.keys, (pair.down, pair.up), strict=True)}
    convert = getattr(getattr(diffusers, model.pipeline), "lora_state_dict", None)
    try:
        if convert is not None:
            config = SimpleNamespace(**model.denoiser.component.config)
            given = {"unet_config": config} if "unet" in model.parts else {}
            state = convert(state, **given)
            state = state[0] if isinstance(state, tuple) else state
        if any(key.startswith("text_encoder") for key in state):
            if any("to_out_lora" in key or "lora_linear_layer" in key for key in state):
                state = convert_state_dict_to_peft(state)
        else:
            state = convert_unet_state_dict_to_peft(state)
    except Exception:  # converters stop at what they do not know by whatever the first wrong index raises
        return {}
    return {key: value.numpy() for key, value in state.items()}


def _strange(file: LoraFile, unknown: list[str], model: Model) -> UserError:
    """The sentence for linears that the model has not."""
    have = " and ".join(p.component.cls for p in model.parts.values())
    if len(unknown) == len(file.pairs):
        return UserError(
            f"{file.path} is a LoRA for another architecture: none of its {len(unknown)} layers, like {unknown[0]!r}, "
            f"is in this {model.pipeline} ({have}); give one that was trained on this model."
        )
    return UserError(
        f"{file.path} has {len(unknown)} of {len(file.pairs)} layers, like {unknown[0]!r}, that this {model.pipeline} "
        f"({have}) has not: give a LoRA that was trained on this model."
    )


def _check_shape(path: Path, pair: Pair, shape: tuple[int, ...], part: Part) -> None:
    n, inner = shape[0], shape[1:]
    of = tuple(pair.down.shape[1:])
    if pair.up.shape[0] == n and math.prod(of) == math.prod(inner) and (of == inner or math.prod(inner[1:]) == 1):
        return
    raise UserError(
        f"{path} has {pair.name!r} for a weight of {[pair.up.shape[0], *of]}, this {part.component.cls} has "
        f"{list(shape)}: it was trained on a model of another size."
    )
