"""Tokenizers as one tokenizer.json each, which pads and truncates as the pipeline does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import write_text

# What the copy is tried on: nothing, one word, accents, digits and punctuation, more than any context holds.
TRIED = ("", "fox", "A café's “large” red circle, 3 x 4!", "a red fox in deep snow under a blue sky " * 60)


def write_tokenizer(folder: Path, to: Path, length: int | None, prompts: list[str]) -> int:
    """Write the tokenizer in `folder` (a diffusers pipeline's) as `to`, giving `length` ids (None: its own limit).

    Returns that length. Raises UserError where the tokenizers library alone gives other ids than transformers does.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backend = getattr(theirs, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{folder} is a tokenizer without a fast form, which a device without transformers needs: convert it with "
            "transformers' save_pretrained and build the artifact again."
        )
    length = length or int(theirs.model_max_length)
    ours = Tokenizer.from_str(backend.to_str())
    ours.enable_truncation(length)
    ours.enable_padding(length=length, pad_id=theirs.pad_token_id or 0, pad_token=theirs.pad_token or "")
    for text in (*TRIED, *prompts):
        wanted = theirs(text, padding="max_length", max_length=length, truncation=True).input_ids
        if ours.encode(text).ids != wanted:
            raise UserError(
                f"{folder} gives other ids without transformers (for {text[:40]!r}): draw with python -m engines.run."
            )
    write_text(to, ours.to_str(pretty=True) + "\n")
    return length


def context(generation: dict[str, Any], encoder: dict[str, Any]) -> int | None:
    """Ids that the pipeline asks this encoder's tokenizer for; None: the tokenizer's own limit."""
    if encoder["class"].startswith("T5"):
        return int(generation.get("max_sequence_length", 512))
    return None
