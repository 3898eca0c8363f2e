"""SANA: linear attention and convolutional feed-forwards on a latent of 1/32 the size (arXiv 2410.10629)."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from artifact.sampling import LatentRule
from export.families.linear_attention import LinearAttention
from export.families.positions import float32_positions
from export.families.row import Config, PipelineRow, Row, Shapes, random, text_mask


def _call(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
) -> torch.Tensor:
    # As in pixart.py: without it the export fails on sizes of the mask that it cannot show to be the others'.
    torch._check(encoder_attention_mask.shape[0] == hidden_states.shape[0])
    torch._check(encoder_hidden_states.shape[0] == hidden_states.shape[0])
    torch._check(timestep.shape[0] == hidden_states.shape[0])
    torch._check(encoder_attention_mask.shape[1] == encoder_hidden_states.shape[1])
    return type(self).forward(
        self, hidden_states, encoder_hidden_states, timestep, encoder_attention_mask=encoder_attention_mask,
        return_dict=False,
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
    float32_positions(module.patch_embed)
    for block in module.transformer_blocks:
        block.attn1.processor = LinearAttention()


def _latents(config_of: Any) -> LatentRule:
    scale = 2 ** (len(config_of("vae")["encoder_block_out_channels"]) - 1)
    return LatentRule(config_of("transformer")["in_channels"], scale, False)


def _generation(config_of: Any) -> dict[str, Any]:
    size = config_of("transformer").get("sample_size", 32) * _latents(config_of).scale
    return {
        "height": size, "width": size, "num_inference_steps": 20, "guidance_scale": 4.5, "negative_prompt": "",
        "max_sequence_length": 300, "use_resolution_binning": False, "clean_caption": False,
    }  # fmt: skip


ROWS = (
    Row(
        cls="SanaTransformer2DModel",
        role="denoiser",
        component="{module}",
        build=lambda config: diffusers.SanaTransformer2DModel.from_config(config),
        load=diffusers.SanaTransformer2DModel.from_pretrained,
        call=lambda config: _call,
        adapt=_adapt,
        inputs=_inputs,
        axes=_axes,
        outputs=("out_sample",),
        quantise=(
            "transformer_blocks.*.attn1.*",
            "transformer_blocks.*.attn2.to_q",
            "transformer_blocks.*.attn2.to_out.0",
            "transformer_blocks.*.ff.conv_inverted",  # 1 x 1: a linear on every pixel (passes/conv1x1.py)
            "transformer_blocks.*.ff.conv_point",
        ),
        # The depthwise convolution between them has 9 weights a channel. One modulation serves all blocks, so it
        # weighs little and errs everywhere; keys and values of the text are few rows.
        keep=(
            "*.attn2.to_k",
            "*.attn2.to_v",
            "*.ff.conv_depth",
            "patch_embed.*",
            "time_embed.*",
            "caption_projection.*",
            "proj_out",
        ),
        refuse=lambda config: "guidance_embeds (SANA-Sprint)" if config.get("guidance_embeds") else None,
    ),
)

# Gemma-2 and AutoencoderDC were trained in bfloat16 and leave float16's range; bfloat16 graphs are not built.
PIPELINES = (PipelineRow("SanaPipeline", _latents, _generation, lambda config_of: ("text_encoder", "vae")),)
