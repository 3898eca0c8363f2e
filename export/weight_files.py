"""Which files hold a module's weights: safetensors only, one file or shards, plain or in the fp16 variant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from export.json_object import read_json
from export.quantised import quantised
from export.safetensors_index import WeightIndex, check_placement, index_files

PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_STEMS = ("diffusion_pytorch_model", "model")
_PICKLE = (".bin", ".ckpt", ".pt", ".pth")


def module_weights(folder: Path) -> WeightIndex:
    """The tensors of a module's folder. Raises UserError where there are none, only pickles, or damaged ones."""
    chosen = _weights_entry(folder)
    if chosen is None:
        raise _no_weights(folder)
    weights = index_files(weight_files(folder))
    if chosen.suffix == ".json":
        check_placement(chosen, _placement(chosen), weights)
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The module's safetensors. Empty where it has none."""
    chosen = _weights_entry(folder)
    if chosen is None:
        return []
    return _shards(chosen) if chosen.suffix == ".json" else [chosen]


def _weights_entry(folder: Path) -> Path | None:
    """The file to begin with: plain before fp16, the index of shards before a single file. None where there is none."""
    for variant in ("", ".fp16"):
        for stem in _STEMS:
            for name in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors"):
                if (folder / name).is_file():
                    return folder / name
    return None


def _shards(path: Path) -> list[Path]:
    """The files that a sharded index names. Raises UserError where one is missing or not beside it."""
    names = sorted(set(map(str, _placement(path).values())))
    for name in names:
        if not PLAIN_NAME.fullmatch(name) or not (path.parent / name).is_file():
            raise UserError(f"{path.name} names the shard {name!r}, which is not in {path.parent}: download it again.")
    return [path.parent / name for name in names]


def _placement(path: Path) -> dict[str, Any]:
    """{tensor: name of its shard} of a sharded index. Raises UserError where it names none."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} names no shards: download it again.")
    return found


def _no_weights(folder: Path) -> UserError:
    """The sentence for a folder without safetensors."""
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLE)
    if pickles:
        return UserError(
            f"{folder} has its weights only as pickle ({', '.join(pickles)}), which can run code and is never read: "
            "convert them once where you trust them, `DiffusionPipeline.from_pretrained(DIR, use_safetensors=False)"
            ".save_pretrained(NEW, safe_serialization=True)`, and give NEW."
        )
    if any(folder.glob("*.gguf")):
        return quantised(folder, "GGUF")
    return UserError(f"{folder} holds no .safetensors file: download the model again.")
