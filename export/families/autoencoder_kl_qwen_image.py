"""Qwen-Image's autoencoder, Wan's for videos (arXiv 2503.20314), on single images: decoder and encoder are two graphs.

Its convolutions run over frames and look only back. Before the one frame of an image they see zeros, so of their taps
in time the last alone counts, and each is the two-dimensional convolution of that tap. What changes the frame rate
does nothing to a first frame. The graphs keep the axis of frames, of size 1, that the pipeline expects.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as vae

from export.families.row import Config, Row, Shapes, random

# Parameters whose tensors have an axis of frames in the files: kernels of causal convolutions, and norms around them.
_OVER_FRAMES = ("*conv*.weight", "*.norm1.gamma", "*.norm2.gamma", "*.norm_out.gamma")


def _decode(self: Any, latent_sample: torch.Tensor) -> torch.Tensor:
    if not _flat(self.post_quant_conv):  # diffusers' own module, that the graph is compared with
        return self.decode(latent_sample, return_dict=False)[0]
    return self.decoder(self.post_quant_conv(latent_sample[:, :, 0])).clamp(-1, 1)[:, :, None]


def _encode(self: Any, sample: torch.Tensor) -> torch.Tensor:
    if not _flat(self.quant_conv):
        return self.encode(sample).latent_dist.parameters
    return self.quant_conv(self.encoder(sample[:, :, 0]))[:, :, None]


def _flat(conv: torch.nn.Module) -> bool:
    return isinstance(conv, torch.nn.Conv2d)


def _only(kept: str) -> Any:
    unused = {"encoder": ("decoder", "post_quant_conv"), "decoder": ("encoder", "quant_conv")}[kept]

    def adapt(module: Any) -> None:
        for name in unused:
            setattr(module, name, None)
        for child in list(module.modules()):
            _flatten(child)

    return adapt


def _flatten(module: Any) -> None:
    """The module's own part in place: on [B, C, h, w] instead of [B, C, 1, h, w]."""
    for name, child in module.named_children():
        if isinstance(child, vae.QwenImageCausalConv3d):
            setattr(module, name, _last_tap(child))
    if isinstance(module, vae.QwenImageRMS_norm):
        module.gamma = torch.nn.Parameter(torch.empty(len(module.gamma), 1, 1, device="meta"))
        module.forward = MethodType(_norm, module)
    elif isinstance(module, vae.QwenImageAttentionBlock):
        module.forward = MethodType(_attention, module)
    elif isinstance(module, vae.QwenImageResample):
        module.time_conv = None
        module.forward = MethodType(_resample, module)
        if module.mode.startswith("upsample"):
            # diffusers' "nearest-exact" in float32: at twice the size both kinds of nearest copy the same pixel.
            module.resample[0] = torch.nn.Upsample(scale_factor=2.0, mode="nearest")


def _last_tap(conv: Any) -> torch.nn.Conv2d:
    """What a causal convolution that keeps the size is on one frame, without values."""
    _, rows, columns = conv.kernel_size
    return torch.nn.Conv2d(
        conv.in_channels, conv.out_channels, (rows, columns), padding=(rows // 2, columns // 2), device="meta"
    )


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """x [B, C, h, w] scaled to a mean square of 1 over the channels, computed in float32, times the weight."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp(min=1e-12)
    return (wide / (length / self.scale)).to(x.dtype) * self.gamma


def _attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    """One head over all pixels of x [B, C, h, w], added to it."""
    q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return x + self.proj(y[:, 0].transpose(1, 2).reshape(x.shape))


def _resample(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Half or twice the rows and columns of x [B, C, h, w]; frames stay as they are."""
    return self.resample(x)


def _scale(config: Config) -> int:
    return 2 ** (len(config["dim_mult"]) - 1)


def _decoder_inputs(
    config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    size = (shapes.batch, config["z_dim"], 1, shapes.height, shapes.width)
    return {"latent_sample": random(*size, dtype=dtype, generator=generator)}


def _encoder_inputs(
    config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    channels = config.get("input_channels", 3)  # older files do not name them
    size = (shapes.batch, channels, 1, shapes.height * _scale(config), shapes.width * _scale(config))
    return {"sample": random(*size, dtype=dtype, generator=generator).clamp(-1, 1)}


def _row(role: str, **of_role: Any) -> Row:
    return Row(
        cls="AutoencoderKLQwenImage",
        role=role,
        component="{module}_" + role.removeprefix("vae_"),
        build=lambda config: diffusers.AutoencoderKLQwenImage.from_config(config),
        load=diffusers.AutoencoderKLQwenImage.from_pretrained,
        adapt=_only(role.removeprefix("vae_")),
        last_frame=_OVER_FRAMES,
        **of_role,
    )


ROWS = (
    _row(
        "vae_decoder",
        call=lambda config: _decode,
        inputs=_decoder_inputs,
        axes=lambda config: {
            "latent_sample": ("batch", None, None, "height", "width"),
            "sample": ("batch", None, None, "image_height", "image_width"),
        },
        outputs=("sample",),
    ),
    _row(
        "vae_encoder",
        call=lambda config: _encode,
        inputs=_encoder_inputs,
        axes=lambda config: {
            "sample": ("batch", None, None, "image_height", "image_width"),
            "moments": ("batch", None, None, "height", "width"),
        },
        outputs=("moments",),
    ),
)
