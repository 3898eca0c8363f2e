"""Prompts to the denoiser's conditions: token ids as the pipeline makes them, text encoders, what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from artifact.sampling import Progress
from engines.deploy.device.bundle import Bundle
from engines.deploy.device.runner import Arrays, Opener


class Text(NamedTuple):
    """What to encode; `side` "prompt" or "negative", which some pipelines treat differently."""

    words: str
    side: str = "prompt"


class Tokens:
    """A text's token ids and mask, int64 [1, length] each, from a tokenizer of the tokenizers library.

    `rule` is the manifest's "text": {"lowered": bool, "prompt" and "negative": {"before", "after": text around the
    words, "drop": [first, end) of the tokens that are encoded and then left out}}. Those come on top of the length
    that the tokenizer itself truncates and pads to.
    """

    def __init__(self, tokenizer: Any, rule: Mapping[str, Any]) -> None:
        self._tokenizer, self._rule = tokenizer, rule
        self._length: int = tokenizer.truncation["max_length"]

    def __call__(self, text: Text) -> tuple[np.ndarray, np.ndarray]:
        side = self._rule[text.side]
        first, end = side["drop"]
        self._resize(self._length + end - first)
        words = text.words.lower().strip() if self._rule["lowered"] else text.words
        found = self._tokenizer.encode(side["before"] + words + side["after"])
        return np.array([found.ids], np.int64), np.array([found.attention_mask], np.int64)

    def _resize(self, length: int) -> None:
        truncation, padding = self._tokenizer.truncation, self._tokenizer.padding
        self._tokenizer.enable_truncation(**{**truncation, "max_length": length})
        if padding is not None:
            self._tokenizer.enable_padding(**{**padding, "length": length})


def encode(
    bundle: Bundle, open_: Opener, texts: Sequence[Text], times: dict[str, list[float]], progress: Progress
) -> dict[Text, Arrays]:
    """The denoiser's conditions [1, ...] of every text; milliseconds of every encoder's calls go to `times`."""
    from tokenizers import Tokenizer

    about = bundle.manifest
    encoded: dict[Text, dict[str, Arrays]] = {text: {} for text in texts}
    for name, file in about["tokenizers"].items():
        tokens = Tokens(Tokenizer.from_file(str(bundle.path(file))), about["text"])
        with open_(name) as encoder:
            for i, text in enumerate(texts):
                ids, mask = tokens(text)
                feeds = {"input_ids": ids}
                if "attention_mask" in about["components"][name]["inputs"]:
                    # A pipeline that gives no mask lets the model see the padding, as it did in training.
                    feeds["attention_mask"] = mask if about["text"]["masked"] else np.ones_like(mask)
                found = {**encoder.run(feeds), "attention_mask": mask}
                dropped = slice(*about["text"][text.side]["drop"])
                encoded[text][name] = {k: np.delete(v, dropped, axis=1) for k, v in found.items()}
                progress(i + 1, len(texts), f"encoding ({name})")
            times[name] = encoder.latencies_ms
    return {text: _conditions(about, found) for text, found in encoded.items()}


def _conditions(about: Mapping[str, Any], found: Mapping[str, Arrays]) -> Arrays:
    """The encoders' outputs put together as the manifest's "conditions" say."""
    shapes = about["components"][about["denoiser"]]["inputs"]
    return {name: _joined(parts, found, shapes[name][-1]) for name, parts in about["conditions"].items()}


def _joined(parts: Sequence[Any], found: Mapping[str, Arrays], width: int) -> np.ndarray:
    """Parts after one another: each the last axes of several outputs joined, or a number of rows of zeros."""
    rows = []
    for part in parts:
        if isinstance(part, int):
            rows.append(np.zeros((1, part, width), np.float32))
        else:
            rows.append(np.concatenate([found[encoder][output] for encoder, output in part], axis=-1))
    if len(rows) == 1:
        return rows[0]
    return np.concatenate([np.pad(r, ((0, 0), (0, 0), (0, width - r.shape[-1]))) for r in rows], axis=1)
