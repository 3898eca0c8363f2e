"""Tokenizers without a vocabulary file: one id for each byte, special tokens where the text encoder expects them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

_FIRST_BYTE = 3  # the ids before it are those of T5's and Gemma's special tokens


@dataclass(frozen=True)
class Tokens:
    """What the pipeline's tokenizer does beside splitting text. Negative ids count from the end of the vocabulary.

    `start`, `end`: ids put around a text, None for nothing; `pad`: id of the padding; `length`: of the context.
    """

    start: int | None
    end: int | None
    pad: int
    length: int


CLIP_TOKENS = Tokens(start=-2, end=-1, pad=-1, length=77)  # CLIP pools at the highest id, its end token
T5_TOKENS = Tokens(start=None, end=1, pad=0, length=512)
GEMMA_TOKENS = Tokens(start=2, end=None, pad=0, length=8192)


def byte_tokenizer(tokens: Tokens, vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of UTF-8 bytes for an encoder whose embedding has `vocabulary` rows (259 or more)."""
    ids = {byte: _FIRST_BYTE + i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special: dict[str, Any] = {}
    for name, number in (("<start>", tokens.start), ("<end>", tokens.end), ("<pad>", tokens.pad)):
        if number is not None and number % vocabulary not in special.values():
            special[name] = number % vocabulary
    tokenizer = Tokenizer(models.BPE(vocab=ids | special, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = [part for part in ("<start>", "$A", "<end>") if part == "$A" or part in special]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[(part, special[part]) for part in template if part in special]
    )
    pad = next(name for name, number in special.items() if number == tokens.pad % vocabulary)
    named = {f"{role}_token": name for role, name in (("bos", "<start>"), ("eos", "<end>")) if name in special}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, model_max_length=tokens.length, padding_side="right", **named
    )
