"""The KL autoencoder of Stable Diffusion, SDXL and FLUX (arXiv 2112.10752): decoder and encoder are two graphs."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import torch

from export.families.row import Config, Row, Shapes, random

# How files written before diffusers 0.14 name the middle attention.
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_ATTENTION = re.compile(r"(.*\.attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)(\.weight|\.bias)")


def _decode(self: Any, latent_sample: torch.Tensor) -> torch.Tensor:
    latents = latent_sample if self.post_quant_conv is None else self.post_quant_conv(latent_sample)
    return self.decoder(latents)


def _encode(self: Any, sample: torch.Tensor) -> torch.Tensor:
    moments = self.encoder(sample)
    return moments if self.quant_conv is None else self.quant_conv(moments)


def _without(*names: str) -> Any:
    def adapt(module: torch.nn.Module) -> None:
        for name in names:
            setattr(module, name, None)

    return adapt


def _scale(config: Config) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


def _decoder_inputs(
    config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    size = (shapes.batch, config["latent_channels"], shapes.height, shapes.width)
    return {"latent_sample": random(*size, dtype=dtype, generator=generator)}


def _encoder_inputs(
    config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    size = (shapes.batch, config["in_channels"], shapes.height * _scale(config), shapes.width * _scale(config))
    return {"sample": random(*size, dtype=dtype, generator=generator).clamp(-1, 1)}


def _file_names(name: str) -> tuple[str, ...]:
    old = _ATTENTION.fullmatch(name)
    return (name, f"{old[1]}{_OLD[old[2]]}{old[3]}") if old else (name,)


def _row(role: str, **of_role: Any) -> Row:
    return Row(
        cls="AutoencoderKL",
        role=role,
        component="{module}_" + role.removeprefix("vae_"),
        build=lambda config: diffusers.AutoencoderKL.from_config(config),
        load=diffusers.AutoencoderKL.from_pretrained,
        file_names=_file_names,
        **of_role,
    )


ROWS = (
    _row(
        "vae_decoder",
        call=lambda config: _decode,
        adapt=_without("encoder", "quant_conv"),
        inputs=_decoder_inputs,
        axes=lambda config: {
            "latent_sample": ("batch", None, "height", "width"),
            "sample": ("batch", None, "image_height", "image_width"),
        },
        outputs=("sample",),
    ),
    _row(
        "vae_encoder",
        call=lambda config: _encode,
        adapt=_without("decoder", "post_quant_conv"),
        inputs=_encoder_inputs,
        axes=lambda config: {
            "sample": ("batch", None, "image_height", "image_width"),
            "moments": ("batch", None, "height", "width"),
        },
        outputs=("moments",),
    ),
)
