"""T5's encoder (arXiv 1910.10683), called as FLUX does: padding is attended to, no mask."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from export.families.row import Config, Row, Shapes


def _call(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
    return type(self).forward(self, input_ids=input_ids).last_hidden_state


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, config["vocab_size"], (shapes.batch, shapes.sequence), generator=generator)}


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
        call=lambda config: _call,
        inputs=_inputs,
        axes=lambda config: {"input_ids": ("batch", "sequence"), "last_hidden_state": ("batch", "sequence", None)},
        outputs=("last_hidden_state",),
        file_names=_file_names,
        float32=("*.DenseReluDense.wo.weight",),  # float16 overflows there (transformers keeps it float32, too)
    ),
)
