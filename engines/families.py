"""What differs between model families when a pipeline is called: one row each, found by the denoiser's class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from artifact.errors import UserError
from artifact.sampling import LatentRule


@dataclass(frozen=True)
class Family:
    """`denoiser`: class name of the denoiser; `packed`: its latents are 2 x 2 patches in a sequence.

    `joined_guidance`: the pipeline computes both halves of classifier-free guidance in one call of twice the batch.
    `both_texts`: its text is CLIP's tokens followed by T5's, where others read those of one encoder.
    `template`: tokens of the instruction that its pipeline puts before a prompt and drops behind the text encoder;
    where there is one, prompts are as long as they are, where others pad them.
    """

    denoiser: str
    packed: bool
    joined_guidance: bool
    both_texts: bool = False
    template: int = 0


FAMILIES = (
    Family("FluxTransformer2DModel", packed=True, joined_guidance=False),
    Family("UNet2DConditionModel", packed=False, joined_guidance=True),
    Family("SD3Transformer2DModel", packed=False, joined_guidance=True, both_texts=True),
    Family("PixArtTransformer2DModel", packed=False, joined_guidance=True),
    Family("SanaTransformer2DModel", packed=False, joined_guidance=True),
    Family("QwenImageTransformer2DModel", packed=True, joined_guidance=False, template=34),
)


@dataclass(frozen=True)
class Layout:
    """How one artifact's pipeline wants to be called.

    `latents`: layout of the initial noise; `multiple`: height and width in pixels must be multiples of it;
    `guidance`: the pipeline's keyword for the classifier-free (or, where distilled, embedded) guidance scale;
    `joined_guidance`, `both_texts` and `template` as in Family.
    """

    latents: LatentRule
    multiple: int
    guidance: str
    joined_guidance: bool
    both_texts: bool = False
    template: int = 0


def layout(components: dict[str, Any]) -> Layout:
    """The layout for the manifest's components. Raises UserError for a denoiser class without a row above."""
    denoiser = next(c for c in components.values() if c["role"] == "denoiser")
    vae = next(c for c in components.values() if c["role"] == "vae_decoder")
    family = next((f for f in FAMILIES if f.denoiser == denoiser["class"]), None)
    if family is None:
        known = ", ".join(f.denoiser for f in FAMILIES)
        raise UserError(f"The artifact's denoiser is a {denoiser['class']}, this version runs {known}: update it.")
    config = denoiser["config"]
    scale = _scale(vae["config"])
    if family.packed:  # in_channels may count a picture that is read beside the noise
        guidance = "guidance_scale" if config.get("guidance_embeds") else "true_cfg_scale"
        rule = LatentRule(_channels(vae["config"]), scale, True)
        return Layout(rule, 2 * scale, guidance, family.joined_guidance, template=family.template)
    rule = LatentRule(config["in_channels"], scale, False)
    # A transformer's patches; or a UNet's skip connections, which must meet at every level.
    cells = config["patch_size"] if "patch_size" in config else 2 ** (len(config["block_out_channels"]) - 1)
    return Layout(rule, scale * cells, "guidance_scale", family.joined_guidance, family.both_texts)


def _channels(vae: dict[str, Any]) -> int:
    """Channels of a latent cell."""
    return int(vae["z_dim"] if "z_dim" in vae else vae["latent_channels"])  # AutoencoderKLQwenImage's name for it


def _scale(vae: dict[str, Any]) -> int:
    """Pixels a side of a latent cell."""
    if "temperal_downsample" in vae:  # AutoencoderKLQwenImage, whose pipeline counts so
        return int(2 ** len(vae["temperal_downsample"]))
    blocks = vae.get("block_out_channels") or vae["encoder_block_out_channels"]  # AutoencoderDC
    return int(2 ** (len(blocks) - 1))
