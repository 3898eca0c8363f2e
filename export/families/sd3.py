"""Stable Diffusion 3 and 3.5: the multimodal diffusion transformer on latents [B, C, h, w] (arXiv 2403.03206)."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from artifact.sampling import LatentRule
from export.families.row import Config, PipelineRow, Row, Shapes, random


def _call(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
    timestep: torch.Tensor,
) -> torch.Tensor:
    return type(self).forward(
        self, hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False
    )[0]


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    kind: dict[str, Any] = {"dtype": dtype, "generator": generator}
    return {
        "hidden_states": random(shapes.batch, config["in_channels"], shapes.height, shapes.width, **kind),
        "encoder_hidden_states": random(shapes.batch, shapes.sequence, config["joint_attention_dim"], **kind),
        "pooled_projections": random(shapes.batch, config["pooled_projection_dim"], **kind),
        "timestep": torch.tensor([1000.0, 500.0, 10.0])[torch.arange(shapes.batch) % 3],
    }


def _axes(config: Config) -> dict[str, tuple[str | None, ...]]:
    return {
        "hidden_states": ("batch", None, "height", "width"),
        "encoder_hidden_states": ("batch", "sequence", None),
        "pooled_projections": ("batch", None),
        "timestep": ("batch",),
        "out_sample": ("batch", None, "height", "width"),
    }


def _adapt(module: Any) -> None:
    # The table of positions is a buffer that the files hold (SD3.5-medium's is 384 x 384 positions, 0.45 GB). As a
    # parameter it is read from there, and neither computed anew nor written into the graph as a constant.
    embed = module.pos_embed
    shape = embed.pos_embed.shape
    del embed.pos_embed
    embed.register_parameter("pos_embed", torch.nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))


def _latents(config_of: Any) -> LatentRule:
    scale = 2 ** (len(config_of("vae")["block_out_channels"]) - 1)
    return LatentRule(config_of("transformer")["in_channels"], scale, False)


def _generation(config_of: Any) -> dict[str, Any]:
    size = config_of("transformer").get("sample_size", 128) * _latents(config_of).scale
    return {
        "height": size, "width": size, "num_inference_steps": 28, "guidance_scale": 4.5, "negative_prompt": "",
        "max_sequence_length": 256,
    }  # fmt: skip


ROWS = (
    Row(
        cls="SD3Transformer2DModel",
        role="denoiser",
        component="{module}",
        build=lambda config: diffusers.SD3Transformer2DModel.from_config(config),
        load=diffusers.SD3Transformer2DModel.from_pretrained,
        call=lambda config: _call,
        adapt=_adapt,
        inputs=_inputs,
        axes=_axes,
        outputs=("out_sample",),
        quantise=(
            "transformer_blocks.*.attn.*",
            "transformer_blocks.*.attn2.*",  # 3.5-medium's second attention is of the image with itself, too
            "transformer_blocks.*.ff.net.*",
            "transformer_blocks.*.ff_context.net.*",
        ),
        weight_only=("transformer_blocks.*.norm1*.linear",),
        keep=("pos_embed.*", "context_embedder", "time_text_embed.*", "norm_out.linear", "proj_out"),
    ),
)

PIPELINES = (PipelineRow("StableDiffusion3Pipeline", _latents, _generation),)
