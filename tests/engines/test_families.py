"""How a pipeline is called follows from its denoiser's class and config."""

from __future__ import annotations

from typing import Any

import pytest

from artifact.errors import UserError
from engines.families import layout


def components(cls: str, vae_blocks: int, **config: Any) -> dict[str, Any]:
    sizes = {"block_out_channels": [1] * vae_blocks, "latent_channels": 16}
    vae = {"role": "vae_decoder", "class": "AutoencoderKL", "config": sizes}
    return {"d": {"role": "denoiser", "class": cls, "config": config}, "v": vae}


def test_flux_is_packed_and_guided_by_what_it_was_trained_with() -> None:
    schnell = layout(components("FluxTransformer2DModel", 4, in_channels=64))
    dev = layout(components("FluxTransformer2DModel", 4, in_channels=64, guidance_embeds=True))
    assert schnell.latents.shape(1024, 512) == (64 * 32, 64) and schnell.multiple == 16
    assert (schnell.guidance, dev.guidance) == ("true_cfg_scale", "guidance_scale")


@pytest.mark.parametrize("in_channels", [128, 384])
def test_the_noise_of_flux_is_as_wide_whatever_its_transformer_reads_beside_it(in_channels: int) -> None:
    found = layout(components("FluxTransformer2DModel", 4, in_channels=in_channels, guidance_embeds=True))
    assert found.latents.shape(1024, 512) == (64 * 32, 64) and found.guidance == "guidance_scale"


def test_a_unets_sizes_halve_at_every_level() -> None:
    found = layout(components("UNet2DConditionModel", 4, in_channels=4, block_out_channels=[1] * 4))
    assert found.latents.shape(512, 768) == (4, 64, 96)
    assert (found.multiple, found.guidance) == (64, "guidance_scale")


def test_a_transformer_s_patches_meet() -> None:
    found = layout(components("SD3Transformer2DModel", 4, in_channels=16, patch_size=2))
    assert found.latents.shape(512, 768) == (16, 64, 96)
    assert (found.multiple, found.guidance, found.joined_guidance) == (16, "guidance_scale", True)


def test_the_deep_autoencoder_s_scale_is_its_encoder_s() -> None:
    given = components("SanaTransformer2DModel", 1, in_channels=32, patch_size=1)
    given["v"] |= {"class": "AutoencoderDC", "config": {"encoder_block_out_channels": [1] * 6}}
    found = layout(given)
    assert found.latents.shape(1024, 512) == (32, 32, 16) and found.multiple == 32


def test_the_video_autoencoder_s_scale_is_that_of_qwen_image_s_pipeline() -> None:
    given = components("QwenImageTransformer2DModel", 1, in_channels=64, guidance_embeds=False)
    config = {"temperal_downsample": [False, True, True], "z_dim": 16}
    given["v"] |= {"class": "AutoencoderKLQwenImage", "config": config}
    found = layout(given)
    assert found.latents.shape(1024, 512) == (64 * 32, 64) and found.multiple == 16
    assert (found.guidance, found.joined_guidance, found.template) == ("true_cfg_scale", False, 34)


def test_an_unknown_denoiser_is_named() -> None:
    with pytest.raises(
        UserError, match="is a ZImageTransformer2DModel, this version runs FluxTransformer2DModel, UNet"
    ):
        layout(components("ZImageTransformer2DModel", 4))
