"""Tokenizers of the captions: every caption word is one token, any other lower-case word falls back to letters."""

from __future__ import annotations

import json
import string

import tokenizers
import torch
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5Tokenizer

from . import data

MAX_TOKENS = 16  # the longest caption has 12 words; CLIP adds a start and an end
WORDS = sorted(
    {"a", "on", *data.COLOURS, *data.BACKGROUNDS, *data.SHAPES, *data.SIZES}
    | {word for phrase in (*data.PLACES, *data.RELATIONS) for word in phrase.split()}
)
_LETTERS = list(string.ascii_lowercase)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair tokenizer in CLIP's format.

    The merges are learnt from the word list, because merges made by hand collide ("triangle" is split by a merge of
    "right"). Padding has its own token: CLIP pools at the first end token.
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
    learnt = json.loads(pairs.to_str())["model"]
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
