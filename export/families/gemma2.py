"""Gemma-2 (arXiv 2408.00118) as SANA reads text with it: the last hidden state of a language model's decoder."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from export.families.row import Config, Row, Shapes, text_mask


def _call(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    torch._check(attention_mask.shape[0] == input_ids.shape[0])
    torch._check(attention_mask.shape[1] == input_ids.shape[1])
    return (
        type(self).forward(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    )


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, config["vocab_size"], (shapes.batch, shapes.sequence), generator=generator)
    return {"input_ids": ids, "attention_mask": text_mask(shapes)}


ROWS = (
    Row(
        cls="Gemma2Model",
        role="text_encoder",
        component="{module}",
        build=lambda config: transformers.Gemma2Model(transformers.Gemma2Config(**dict(config))),
        load=transformers.Gemma2Model.from_pretrained,
        call=lambda config: _call,
        inputs=_inputs,
        axes=lambda config: {
            "input_ids": ("batch", "sequence"),
            "attention_mask": ("batch", "sequence"),
            "last_hidden_state": ("batch", "sequence", None),
        },
        outputs=("last_hidden_state",),
        weight_only=("layers.*.self_attn.[qkvo]_proj", "layers.*.mlp.*_proj"),
        keep=(),
        quantise_from=1 << 28,  # SANA's has 2.6e9; see t5.py
        file_names=lambda name: (name, f"model.{name}"),  # as Gemma2ForCausalLM saves it
    ),
)
