"""T5's encoder (arXiv 1910.10683): FLUX and SD3 let it attend to padding, PixArt gives a mask."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from export.families.row import MASKED, Config, Row, Shapes, text_mask


def _call(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
    return type(self).forward(self, input_ids=input_ids).last_hidden_state


def _call_masked(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    torch._check(attention_mask.shape[0] == input_ids.shape[0])
    torch._check(attention_mask.shape[1] == input_ids.shape[1])
    return type(self).forward(self, input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, config["vocab_size"], (shapes.batch, shapes.sequence), generator=generator)
    return {"input_ids": ids} | ({"attention_mask": text_mask(shapes)} if config.get(MASKED) else {})


def _axes(config: Config) -> dict[str, tuple[str | None, ...]]:
    axes: dict[str, tuple[str | None, ...]] = {"input_ids": ("batch", "sequence")}
    mask = {"attention_mask": ("batch", "sequence")} if config.get(MASKED) else {}
    return axes | mask | {"last_hidden_state": ("batch", "sequence", None)}


def _build(config: Config) -> torch.nn.Module:
    return transformers.T5EncoderModel(transformers.T5Config(**dict(config)))


def _file_names(name: str) -> tuple[str, ...]:
    # The embedding is tied: files hold it once, under either name.
    tied = ("shared.weight", "encoder.embed_tokens.weight")
    return (name, *tied) if name in tied else (name,)


ROWS = (
    Row(
        cls="T5EncoderModel",
        role="text_encoder",
        component="{module}",
        build=_build,
        load=transformers.T5EncoderModel.from_pretrained,
        call=lambda config: _call_masked if config.get(MASKED) else _call,
        inputs=_inputs,
        axes=_axes,
        outputs=("last_hidden_state",),
        file_names=_file_names,
        float32=("*.DenseReluDense.wo.weight",),  # float16 overflows there (transformers keeps it float32, too)
        weight_only=("encoder.block.*.SelfAttention.[qkvo]", "encoder.block.*.DenseReluDense.wi*"),
        keep=("*.DenseReluDense.wo",),
        quantise_from=1 << 28,  # T5-XXL has 4.8e9; 4 bits for a small one save little and cost the prompt
    ),
)
