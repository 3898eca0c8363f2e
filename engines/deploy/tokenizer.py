"""Tokenizers as one tokenizer.json each, which pads and truncates as the pipeline does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import write_text
from engines.deploy.device.text import Text, Tokens
from engines.deploy.pipelines import Pipeline

# What the copy is tried on: nothing, one word, accents, digits and punctuation, more than any context holds.
TRIED = ("", "fox", " A café's “large” red circle, 3 x 4!\n", "a red fox in deep snow under a blue sky " * 60)


def write_tokenizer(
    folder: Path,
    to: Path,
    length: int,
    fixed: bool,
    pipeline: Pipeline,
    rule: Mapping[str, Any],
    prompts: list[str],
) -> None:
    """Write the tokenizer in `folder` (a diffusers pipeline's) as `to`, giving up to `length` ids of a prompt.

    `fixed`: the pipeline asks for the tokenizer's own length, which `length` must be. `rule` is what the device does
    around it (device/text.py). Raises UserError where it is not, and where the device's Tokens give other ids or
    another mask than transformers does.
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
    if fixed and theirs.model_max_length != length:
        raise UserError(
            f"{folder} pads prompts to {theirs.model_max_length} tokens and its text encoder has positions for "
            f"{length}: set model_max_length to that in its tokenizer_config.json and build the artifact again."
        )
    theirs.padding_side = pipeline.padding_side or theirs.padding_side
    ours = Tokenizer.from_str(backend.to_str())
    ours.enable_truncation(length, direction=theirs.truncation_side)
    ours.no_padding()
    if pipeline.padded:
        ours.enable_padding(
            direction=theirs.padding_side, length=length, pad_id=theirs.pad_token_id or 0,
            pad_token=theirs.pad_token or "",
        )  # fmt: skip
    written = ours.to_str(pretty=True) + "\n"
    tokens = Tokens(Tokenizer.from_str(written), rule)
    for text in (Text(words, side) for words in (*TRIED, *prompts) for side in ("prompt", "negative")):
        side = rule[text.side]
        wanted = theirs(
            side["before"] + (text.words.lower().strip() if pipeline.lowered else text.words) + side["after"],
            padding="max_length" if pipeline.padded else False,
            max_length=length + side["drop"][1] - side["drop"][0],
            truncation=True,
            return_attention_mask=True,
        )
        if [a[0].tolist() for a in tokens(text)] != [wanted.input_ids, wanted.attention_mask]:
            raise UserError(
                f"{folder} gives other ids without transformers (for {text.words[:40]!r}): draw with python -m "
                "engines.run."
            )
    write_text(to, written)
