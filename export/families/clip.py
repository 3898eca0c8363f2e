"""CLIP's text encoder, with and without the projection that SDXL conditions on (arXiv 2103.00020)."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from export.families.row import Config, Row, Shapes

_TEXT = ("batch", "sequence", None)


def _call(self: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out = type(self).forward(self, input_ids=input_ids, output_hidden_states=True)
    pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    return out.last_hidden_state, pooled, out.hidden_states[-2]


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    # Token ids that end as the tokenizer's do: the pooled output is read at the first end-of-text token.
    length = min(shapes.sequence, config["max_position_embeddings"])
    ids = torch.randint(0, config["vocab_size"], (shapes.batch, length), generator=generator)
    end = config.get("eos_token_id", 49407)
    ids = torch.where(ids == end, (end + 1) % config["vocab_size"], ids)
    ids[:, -2:] = config["vocab_size"] - 1 if end == 2 else end  # 2: old configs, the highest id counts as the end
    return {"input_ids": ids}


def _axes(pooled: str) -> Any:
    return lambda config: {
        "input_ids": ("batch", "sequence"),
        "last_hidden_state": _TEXT,
        pooled: ("batch", None),
        "penultimate_hidden_state": _TEXT,
    }


def _file_names(name: str) -> tuple[str, ...]:
    # transformers 4 saved the encoder below "text_model.", 5 saves it without.
    return (name, f"text_model.{name}", name.removeprefix("text_model."))


def _build(cls: Any) -> Any:
    return lambda config: cls(transformers.CLIPTextConfig(**dict(config)))


def _row(name: str, pooled: str) -> Row:
    cls = getattr(transformers, name)
    return Row(
        cls=name,
        role="text_encoder",
        component="{module}",
        build=_build(cls),
        load=cls.from_pretrained,
        call=lambda config: _call,
        inputs=_inputs,
        axes=_axes(pooled),
        outputs=("last_hidden_state", pooled, "penultimate_hidden_state"),
        file_names=_file_names,
    )


ROWS = (_row("CLIPTextModel", "pooler_output"), _row("CLIPTextModelWithProjection", "text_embeds"))
