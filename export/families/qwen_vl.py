"""Qwen2.5-VL (arXiv 2502.13923) as Qwen-Image reads text with it: its language model's last hidden state."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from export.families.row import Config, Row, Shapes, text_mask


def _call(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    # Without pictures all three position axes count the tokens; padding, which the pipeline puts behind, sees other
    # positions than in the whole model, and the pipeline drops it.
    torch._check(attention_mask.shape[0] == input_ids.shape[0])
    torch._check(attention_mask.shape[1] == input_ids.shape[1])
    return self.model.language_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state


def _adapt(module: Any) -> None:
    module.model.visual = None
    module.lm_head = None


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    vocabulary = config.get("text_config", config)["vocab_size"]  # older files have no text_config
    ids = torch.randint(0, vocabulary, (shapes.batch, shapes.sequence), generator=generator)
    return {"input_ids": ids, "attention_mask": text_mask(shapes)}


def _file_names(name: str) -> tuple[str, ...]:
    # transformers 4 before 4.52 saved the language model as "model.", without "language_model.".
    return (name, name.replace("model.language_model.", "model.", 1))


ROWS = (
    Row(
        cls="Qwen2_5_VLForConditionalGeneration",
        role="text_encoder",
        component="{module}",
        build=lambda config: transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(**dict(config))
        ),
        load=transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained,
        call=lambda config: _call,
        adapt=_adapt,
        inputs=_inputs,
        axes=lambda config: {
            "input_ids": ("batch", "sequence"),
            "attention_mask": ("batch", "sequence"),
            "last_hidden_state": ("batch", "sequence", None),
        },
        outputs=("last_hidden_state",),
        weight_only=("model.language_model.layers.*.self_attn.[qkvo]_proj", "model.language_model.layers.*.mlp.*_proj"),
        keep=("model.visual.*", "lm_head"),
        quantise_from=1 << 28,  # Qwen-Image's has 7.6e9 in its language model; see t5.py
        file_names=_file_names,
    ),
)
