"""Saves a pipeline in fp16 so that old and new versions of transformers load the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file


def save(pipeline: DiffusionPipeline, folder: Path, generation: dict) -> None:
    """Writes diffusers' directory layout and `generation.json`, the keyword arguments of a usual call.

    `pipeline` is cast to fp16 in place.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(fresh)
    _make_portable(fresh)
    (fresh / "generation.json").write_text(json.dumps(generation, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _make_portable(folder: Path) -> None:
    """Undoes what transformers 5 writes and 4 misreads (seen with 5.23.0 and 4.57.1)."""
    for part in ("vae", "unet", "transformer"):
        if (folder / part).exists():  # else the trainer's own path is published
            _edit(folder / part / "config.json", lambda c: c.pop("_name_or_path", None))
    for part in ("text_encoder", "text_encoder_2"):
        if (folder / part).exists():  # else 5 loads these in fp16 beside a float32 denoiser, when no dtype is asked for
            _edit(folder / part / "config.json", lambda c: c.update(dtype="float32"))
    # CLIP's weights need their prefix, without which 4 silently starts from random ones.
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    prefixed = {"text_model." + name.removeprefix("text_model."): w for name, w in weights.items()}
    save_file(prefixed, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    # CLIP's slow tokenizer, which 4 prefers, reads these two files.
    pairs = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(pairs["vocab"]))
    merges = "".join(" ".join(m) + "\n" for m in pairs["merges"])
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + merges)
    if (folder / "tokenizer_2").exists():
        # 4 raises on the empty list; its T5Tokenizer needs sentencepiece, the fast one does not.
        _edit(folder / "tokenizer_2" / "tokenizer_config.json", lambda c: c.pop("extra_special_tokens", None))
        _edit(folder / "model_index.json", lambda c: c.update(tokenizer_2=["transformers", "T5TokenizerFast"]))
