"""SANA's deep compression autoencoder (arXiv 2410.10733): decoder and encoder are two graphs."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from export.families.linear_attention import linear_attention
from export.families.row import Config, Row, Shapes, random


def _decode(self: Any, latent_sample: torch.Tensor) -> torch.Tensor:
    return self.decoder(latent_sample)


def _encode(self: Any, sample: torch.Tensor) -> torch.Tensor:
    return self.encoder(sample)


def _only(kept: str) -> Any:
    def adapt(module: Any) -> None:
        setattr(module, {"encoder": "decoder", "decoder": "encoder"}[kept], None)
        for child in module.modules():
            # The linear form, which torch takes where there are more pixels than channels in a head, at every size:
            # the quadratic one, for fewer, is the same sum in another order.
            if hasattr(child, "apply_linear_attention"):
                child.apply_linear_attention = linear_attention

    return adapt


def _scale(config: Config) -> int:
    return 2 ** (len(config["encoder_block_out_channels"]) - 1)


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


def _row(role: str, **of_role: Any) -> Row:
    return Row(
        cls="AutoencoderDC",
        role=role,
        component="{module}_" + role.removeprefix("vae_"),
        build=lambda config: diffusers.AutoencoderDC.from_config(config),
        load=diffusers.AutoencoderDC.from_pretrained,
        adapt=_only(role.removeprefix("vae_")),
        **of_role,
    )


ROWS = (
    _row(
        "vae_decoder",
        call=lambda config: _decode,
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
        inputs=_encoder_inputs,
        axes=lambda config: {
            "sample": ("batch", None, "image_height", "image_width"),
            "latent": ("batch", None, "height", "width"),
        },
        outputs=("latent",),  # the latent itself: this autoencoder draws nothing
    ),
)
