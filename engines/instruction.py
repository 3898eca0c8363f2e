"""The instruction that SANA's pipeline puts before a prompt, whose tokens it drops again behind the text encoder.

With it the text encoder sees more tokens than `max_sequence_length`. The text is diffusers' own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYWORD = "complex_human_instruction"


def instruction(pipeline: str, generation: Mapping[str, Any]) -> str:
    """What the pipeline class puts before every prompt when it is called with `generation`; "" where nothing."""
    import diffusers

    parameter = inspect.signature(getattr(diffusers, pipeline).__call__).parameters.get(KEYWORD)
    lines = generation.get(KEYWORD, parameter.default) if parameter else None
    return "\n".join(lines or [])


def instruction_tokens(pipeline: str, generation: Mapping[str, Any], tokenizer: Path) -> int:
    """Tokens that this adds to a prompt's, by the tokenizer in that folder: all but its first and its last."""
    text = instruction(pipeline, generation)
    if not text:
        return 0
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(tokenizer, local_files_only=True).encode(text)) - 2
