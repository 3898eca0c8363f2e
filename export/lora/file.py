"""One LoRA file: its pairs of matrices as they are named in it, checked before anything is made of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.files import sha256
from export.safetensors_index import Weight, read_header

METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings in the file's header
# How trainers end the names of the two factors: PEFT, kohya, diffusers (three generations of it), XLabs.
_ENDS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".down.weight", ".up.weight"),
)
_ALPHA = ".alpha"
# What is no sum W + up·down of two matrices, by what its keys hold.
_OTHERS = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.oft_": "OFT",
    r"\.lora_mid\.": "LoCon in Tucker form",
    r"\.lora_embedding_": "a LoRA of embeddings",
    r"\.lora_[AB]\.bias$": "a LoRA with biases",
    r"\.diff(_b)?$": "a file of whole differences",
}
_PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save's archive, and a bare pickle


@dataclass(frozen=True, eq=False)
class Pair:
    """W += scale · up · down, for one linear (or convolution) of the name that the file gives it.

    down is float32 [r, K] or [r, K, kh, kw], up float32 [N, r] or [N, r, 1, 1]; `keys` are their names in the file.
    """

    name: str
    down: np.ndarray
    up: np.ndarray
    scale: float
    keys: tuple[str, str]

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True)
class LoraFile:
    """A file and its pairs in the order of their names."""

    path: Path
    sha256: str
    pairs: tuple[Pair, ...] = field(repr=False)


def read_file(path: Path) -> LoraFile:
    """Read a LoRA, its alphas in `scale`.

    Raises UserError for anything else than a whole safetensors file of finite pairs of matrices of rank 1 or more.
    """
    found = {w.name: w for w in _header(path)}
    if not found:
        raise UserError(f"{path} holds no tensor: give the file that the trainer wrote.")
    for key in found:
        for part, kind in _OTHERS.items():
            if re.search(part, key):
                raise UserError(f"{path} is {kind} ({key!r}), not a plain LoRA: only W + up·down is folded.")
    settings = _settings(path)
    pairs = tuple(_pair(path, name, ends, found, settings) for name, ends in sorted(paired(path, found).items()))
    return LoraFile(path, sha256(path), pairs)


def paired(path: Path, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{name of a linear: (key of down, key of up)}. Raises UserError for a key that is neither, nor an alpha."""
    names = set(keys)
    found: dict[str, tuple[str, str]] = {}
    for key in sorted(names):
        for ends in _ENDS:
            end = next((end for end in ends if key.endswith(end)), None)
            if end is not None:
                name = key.removesuffix(end)
                both = (name + ends[0], name + ends[1])
                for other in both:
                    if other not in names:
                        raise UserError(f"{path} has {key!r} without {other!r}: it was saved in part; save it again.")
                found[name] = both
                break
    strange = sorted(k for k in names - {k for both in found.values() for k in both} if not _is_alpha(k, found))
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UserError(f"{path} has a key that no LoRA has, {strange[0]!r}{more}: give a LoRA in safetensors format.")
    return found


def _is_alpha(key: str, names: Mapping[str, Any]) -> bool:
    return key.endswith(_ALPHA) and key.removesuffix(_ALPHA) in names


def _header(path: Path) -> list[Weight]:
    try:
        with open(path, "rb") as f:
            start = f.read(4)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}): give a LoRA in safetensors format.") from None
    if start.startswith(_PICKLES):
        raise UserError(f"{path} is a pickle, which can run code: give the LoRA in safetensors format.")
    return read_header(path)


def _pair(
    path: Path, name: str, keys: tuple[str, str], found: Mapping[str, Weight], settings: Mapping[str, Any]
) -> Pair:
    down, up = (_matrix(path, found[key]) for key in keys)
    if down.shape[0] == 0 or up.shape[1] == 0:
        raise UserError(f"{path} has rank 0 at {name!r}: it holds nothing to fold; train or save it again.")
    if down.shape[0] != up.shape[1] or math.prod(up.shape[2:]) != 1:
        raise UserError(
            f"{path} has down {list(down.shape)} and up {list(up.shape)} at {name!r}, which do not multiply: "
            "save the LoRA again."
        )
    rank = int(down.shape[0])
    if name + _ALPHA in found:
        return Pair(name, down, up, _number(path, found[name + _ALPHA]) / rank, keys)
    return Pair(name, down, up, _configured(name, rank, settings), keys)


def _matrix(path: Path, weight: Weight) -> np.ndarray:
    if len(weight.shape) < 2 or not weight.dtype.startswith(("F", "BF")):
        raise UserError(
            f"{path} has {weight.name!r} as {weight.dtype} {list(weight.shape)}, where a LoRA has a matrix."
        )
    return _finite(path, weight)


def _number(path: Path, weight: Weight) -> float:
    if math.prod(weight.shape) != 1:
        raise UserError(f"{path} has {weight.name!r} of shape {list(weight.shape)}, where a LoRA has one number.")
    return float(_finite(path, weight).reshape(()))


def _finite(path: Path, weight: Weight) -> np.ndarray:
    array = np.array(weight.read(), np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path} has NaN or infinity in {weight.name!r}: its training failed; give an earlier state.")
    return array


def _settings(path: Path) -> dict[str, Any]:
    """PEFT's settings from the file's header: {"<module>.lora_alpha": ..., "<module>.alpha_pattern": {...}, ...}."""
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    try:
        found = json.loads((header.get("__metadata__") or {}).get(METADATA, "{}"))
        settings = dict(found)
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} has {METADATA} that is no JSON object: save the LoRA again.") from None
    if any(v for k, v in settings.items() if k.endswith("use_dora")):
        raise UserError(f"{path} is DoRA (use_dora), not a plain LoRA: only W + up·down is folded.")
    return settings


def _configured(name: str, rank: int, settings: Mapping[str, Any]) -> float:
    """alpha / r as PEFT has it, alpha / √r with rsLoRA; 1 where the file says nothing."""
    prefix, _, rest = name.partition(".")
    own = {k.removeprefix(f"{prefix}."): v for k, v in settings.items() if k.startswith(f"{prefix}.")}
    alpha = own.get("lora_alpha", rank)
    for pattern, value in (own.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", rest):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)
