"""Stable Diffusion 1.5, 2.1 and XL: the convolutional UNet with cross-attention (arXiv 2112.10752, 2307.01952)."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from artifact.sampling import LatentRule
from export.families.row import Config, PipelineRow, Row, Shapes, random

_TIME_IDS = 6  # original height and width, crop top and left, target height and width (SDXL, section 2.2)


def _call(self: Any, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
    return type(self).forward(self, sample, timestep, encoder_hidden_states, return_dict=False)[0]


def _call_conditioned(
    self: Any,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    text_embeds: torch.Tensor,
    time_ids: torch.Tensor,
) -> torch.Tensor:
    # The module concatenates them with float32 sinusoids and rounds after; ONNX has no Concat of two types.
    conditions = {"text_embeds": text_embeds.float(), "time_ids": time_ids}
    return type(self).forward(
        self, sample, timestep, encoder_hidden_states, added_cond_kwargs=conditions, return_dict=False
    )[0]


def _conditioned(config: Config) -> bool:
    return config.get("addition_embed_type") == "text_time"


def _cross_dim(config: Config) -> int:
    dim = config["cross_attention_dim"]
    return dim if isinstance(dim, int) else dim[0]


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    kind: dict[str, Any] = {"dtype": dtype, "generator": generator}
    # The skips meet only where every level's size halves evenly.
    step = 2 ** (len(config["block_out_channels"]) - 1)
    height, width = (max(step, size // step * step) for size in (shapes.height, shapes.width))
    inputs = {
        "sample": random(shapes.batch, config["in_channels"], height, width, **kind),
        "timestep": torch.tensor([10.0, 500.0, 999.0])[torch.arange(shapes.batch) % 3],
        "encoder_hidden_states": random(shapes.batch, shapes.sequence, _cross_dim(config), **kind),
    }
    if _conditioned(config):
        text = config["projection_class_embeddings_input_dim"] - _TIME_IDS * config["addition_time_embed_dim"]
        inputs["text_embeds"] = random(shapes.batch, text, **kind)
        inputs["time_ids"] = torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]]).repeat(shapes.batch, 1).to(dtype)
    return inputs


def _axes(config: Config) -> dict[str, tuple[str | None, ...]]:
    axes: dict[str, tuple[str | None, ...]] = {
        "sample": ("batch", None, "height", "width"),
        "timestep": ("batch",),
        "encoder_hidden_states": ("batch", "sequence", None),
        "out_sample": ("batch", None, "height", "width"),
    }
    return axes | ({"text_embeds": ("batch", None), "time_ids": ("batch", None)} if _conditioned(config) else {})


def _refuse(config: Config) -> str | None:
    """Inputs that the pipelines of this project do not feed."""
    if config.get("addition_embed_type") not in (None, "text_time"):
        return f"addition_embed_type {config['addition_embed_type']!r} (None and 'text_time' are known)"
    for key in ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type"):
        if config.get(key) is not None:
            return f"{key} {config[key]!r} (only None is known)"
    return None


def _latents(config_of: Any) -> LatentRule:
    return LatentRule(config_of("unet")["in_channels"], 2 ** (len(config_of("vae")["block_out_channels"]) - 1), False)


def _size(config_of: Any) -> int:
    return config_of("unet").get("sample_size", 64) * _latents(config_of).scale


def _turbo(config_of: Any) -> bool:
    """SD-Turbo and SDXL-Turbo (arXiv 2311.17042) differ from what they were distilled from in their scheduler alone."""
    scheduler = config_of("scheduler")
    kind, spacing = scheduler.get("_class_name"), scheduler.get("timestep_spacing")
    return kind == "EulerAncestralDiscreteScheduler" and spacing == "trailing"


def _generation(config_of: Any) -> dict[str, Any]:
    size = _size(config_of)
    call = {"height": size, "width": size, "num_inference_steps": 20, "guidance_scale": 7.5, "negative_prompt": ""}
    return call | ({"num_inference_steps": 4, "guidance_scale": 0.0} if _turbo(config_of) else {})


def _generation_xl(config_of: Any) -> dict[str, Any]:
    usual = {} if _turbo(config_of) else {"num_inference_steps": 30, "guidance_scale": 5.0}
    return _generation(config_of) | usual


def _float32_xl(config_of: Any) -> tuple[str, ...]:
    # SDXL's VAE overflows in float16: its pipeline decodes in float32 where the config says so.
    return ("vae",) if config_of("vae").get("force_upcast", True) else ()


ROWS = (
    Row(
        cls="UNet2DConditionModel",
        role="denoiser",
        component="{module}",
        build=lambda config: diffusers.UNet2DConditionModel.from_config(config),
        load=diffusers.UNet2DConditionModel.from_pretrained,
        call=lambda config: _call_conditioned if _conditioned(config) else _call,
        inputs=_inputs,
        axes=_axes,
        outputs=("out_sample",),
        quantise=(
            "*.transformer_blocks.*.attn1.*",
            "*.transformer_blocks.*.attn2.to_q",
            "*.transformer_blocks.*.attn2.to_out.0",
            "*.transformer_blocks.*.ff.net.*",
        ),
        keep=("*.attn2.to_k", "*.attn2.to_v", "*.time_emb_proj", "time_embedding.*", "add_embedding.*",
              "*.proj_in", "*.proj_out"),
        refuse=_refuse,
    ),
)  # fmt: skip

PIPELINES = (
    PipelineRow("StableDiffusionPipeline", _latents, _generation),
    PipelineRow("StableDiffusionXLPipeline", _latents, _generation_xl, _float32_xl),
)
