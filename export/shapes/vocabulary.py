"""Tokenizers of the captions: every caption word is one token, any other lower-case word falls back to letters."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5Tokenizer

from artifact.files import write_json

from . import data

MAX_TOKENS = 16  # the longest caption has 12 words; CLIP adds a start and an end
WORDS = sorted(
    {"a", "on", *data.COLOURS, *data.BACKGROUNDS, *data.SHAPES, *data.SIZES}
    | {word for phrase in (*data.PLACES, *data.RELATIONS) for word in phrase.split()}
)
_LETTERS = list(string.ascii_lowercase)


def learnt_pairs() -> dict[str, Any]:
    """`vocab` {token: number} and `merges` of a byte-pair model of the word list.

    Learnt, because merges made by hand collide ("triangle" is split by a merge of "right"). Words all count alike
    and the trainer breaks ties differently in every process: a run must keep what it was given.
    """
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        initial_alphabet=_LETTERS,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    pairs.train_from_iterator(WORDS + _LETTERS, trainer)
    return json.loads(pairs.to_str())["model"]


def kept_pairs(file: Path) -> dict[str, Any]:
    """`learnt_pairs` of a training run: read from `file` where the run has begun, else learnt and written there."""
    if not file.exists():
        write_json(file, {k: v for k, v in learnt_pairs().items() if k in ("vocab", "merges")})
    return json.loads(file.read_text(encoding="utf-8"))


def clip_tokenizer(learnt: dict[str, Any]) -> CLIPTokenizer:
    """Byte-pair tokenizer in CLIP's format. Padding has its own token: CLIP pools at the first end token."""
    vocabulary = ["<|startoftext|>", "<|endoftext|>", "<|pad|>"]
    vocabulary += sorted(learnt["vocab"], key=learnt["vocab"].get)
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)},
        merges=[tuple(m) for m in learnt["merges"]],
        pad_token="<|pad|>",
        model_max_length=MAX_TOKENS,
    )


def t5_tokenizer() -> T5Tokenizer:
    """Unigram tokenizer in T5's format; a whole word is likelier than its letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [("▁" + word, -1.0) for word in WORDS] + [(letter, -8.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def token_ids(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> torch.Tensor:
    """int64 [B, MAX_TOKENS], padded and cut as the pipelines do."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
