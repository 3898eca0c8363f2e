"""PixArt-Σ: a diffusion transformer with cross-attention to T5 (arXiv 2403.04692)."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from artifact.sampling import LatentRule
from export.families.positions import float32_positions
from export.families.row import Config, PipelineRow, Row, Shapes, random, text_mask


def _call(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
) -> torch.Tensor:
    # The module adds the mask to scores without comparing sizes: torch takes the inputs' axes of one name for
    # different ones, and the export fails on their product, unless it is told.
    torch._check(encoder_attention_mask.shape[0] == hidden_states.shape[0])
    torch._check(encoder_hidden_states.shape[0] == hidden_states.shape[0])
    torch._check(encoder_attention_mask.shape[1] == encoder_hidden_states.shape[1])
    return type(self).forward(
        self, hidden_states, encoder_hidden_states, timestep, encoder_attention_mask=encoder_attention_mask,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
    )[0]  # fmt: skip


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    kind: dict[str, Any] = {"dtype": dtype, "generator": generator}
    return {
        "hidden_states": random(shapes.batch, config["in_channels"], shapes.height, shapes.width, **kind),
        "encoder_hidden_states": random(shapes.batch, shapes.sequence, config["caption_channels"], **kind),
        "timestep": torch.tensor([999.0, 500.0, 10.0])[torch.arange(shapes.batch) % 3],
        "encoder_attention_mask": text_mask(shapes),
    }


def _axes(config: Config) -> dict[str, tuple[str | None, ...]]:
    return {
        "hidden_states": ("batch", None, "height", "width"),
        "encoder_hidden_states": ("batch", "sequence", None),
        "timestep": ("batch",),
        "encoder_attention_mask": ("batch", "sequence"),
        "out_sample": ("batch", None, "height", "width"),
    }


def _adapt(module: Any) -> None:
    float32_positions(module.pos_embed)
    # The forward ends in proj_out(...).squeeze(1), which does nothing to [B, tokens, C]; but tokens are of unknown
    # number in a graph, so it is exported as a Squeeze that fails. With one more axis there is something to squeeze.
    module.proj_out.forward = lambda x: torch.nn.Linear.forward(module.proj_out, x).unsqueeze(1)


def _refuse(config: Config) -> str | None:
    more = config.get("use_additional_conditions")
    if more or (more is None and config.get("sample_size") == 128):
        return "additional conditions on the image's size (PixArt-α's; PixArt-Σ has none)"
    return None


def _latents(config_of: Any) -> LatentRule:
    scale = 2 ** (len(config_of("vae")["block_out_channels"]) - 1)
    return LatentRule(config_of("transformer")["in_channels"], scale, False)


def _generation(config_of: Any) -> dict[str, Any]:
    size = config_of("transformer").get("sample_size", 128) * _latents(config_of).scale
    return {
        "height": size, "width": size, "num_inference_steps": 20, "guidance_scale": 4.5, "negative_prompt": "",
        "max_sequence_length": 300, "use_resolution_binning": False, "clean_caption": False,
    }  # fmt: skip


ROWS = (
    Row(
        cls="PixArtTransformer2DModel",
        role="denoiser",
        component="{module}",
        build=lambda config: diffusers.PixArtTransformer2DModel.from_config(config),
        load=diffusers.PixArtTransformer2DModel.from_pretrained,
        call=lambda config: _call,
        adapt=_adapt,
        inputs=_inputs,
        axes=_axes,
        outputs=("out_sample",),
        quantise=(
            "transformer_blocks.*.attn1.*",
            "transformer_blocks.*.attn2.to_q",
            "transformer_blocks.*.attn2.to_out.0",
            "transformer_blocks.*.ff.net.*",
        ),
        # One modulation serves all blocks, so it weighs little and errs everywhere; keys and values of the text are
        # few rows, computed from T5's outliers.
        keep=(
            "*.attn2.to_k",
            "*.attn2.to_v",
            "pos_embed.*",
            "adaln_single.*",
            "caption_projection.*",
            "proj_out",
        ),
        refuse=_refuse,
    ),
)

PIPELINES = (PipelineRow("PixArtSigmaPipeline", _latents, _generation, masked=("text_encoder",)),)
