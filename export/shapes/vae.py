"""The two autoencoders: FLUX's (16 channels, shifted latents) and Stable Diffusion's (4 channels, quant convs)."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import data
from .loop import Loop, Schedule

DOWNSAMPLING = 4  # pixels a latent cell
CHANNELS = {"dit": 16, "unet": 4}
KL_WEIGHT = 3e-4  # of the mean KL per latent number
# Largest std of the noise added to the latents in training: the decoder must forgive the denoiser's small errors.
NOISE = {"dit": 0.15, "unet": 0.35}
BATCH = 8
EMA = 0.995


def build(family: str) -> AutoencoderKL:
    """Untrained autoencoder of the `dit` or the `unet` pipeline, 3 levels of 16, 32, 64 channels."""
    quant = family == "unet"
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS[family],
        norm_num_groups=8,
        sample_size=data.SIDE,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=None if quant else 0.0,  # Stable Diffusion's pipeline knows no shift
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """float [B, 3, H, W] in -1..1 to uint8 [B, H, W, 3]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def train(folder: Path, family: str, schedule: Schedule, seed: int, resume: bool, frozen: Path | None = None) -> None:
    """Trains an autoencoder into `folder/vae`.

    With `frozen`, a trained autoencoder's directory, only the decoder learns on: its latents, and with them a denoiser
    that trains meanwhile, stay valid. In float32: bf16 convolutions of so few channels are slower on a CPU.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = AutoencoderKL.from_pretrained(frozen).train() if frozen else build(family)
    vae = vae.to(memory_format=torch.channels_last)
    if frozen:
        for part in (vae.encoder, vae.quant_conv):
            if part is not None:
                part.requires_grad_(False)
    learning = [p for p in vae.parameters() if p.requires_grad]
    loop = Loop(folder, {"vae": vae}, [torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.0)], schedule, EMA)
    if resume:
        loop.resume()

    def loss_of_batch(step: int) -> torch.Tensor:
        pictures = np.stack([data.draw(s, rng) for s in data.training_scenes(rng, BATCH)])
        x = to_tensor(pictures).contiguous(memory_format=torch.channels_last)
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's flash kernel has a slow backward
            with torch.set_grad_enabled(frozen is None):
                posterior = vae.encode(x).latent_dist
            spread = NOISE[family] * torch.rand(BATCH, 1, 1, 1) + (0 if frozen else posterior.std)
            y = vae.decode(posterior.mean + spread * torch.randn_like(posterior.mean)).sample
        loss = F.l1_loss(y, x) + F.mse_loss(y, x)
        return loss if frozen else loss + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    def evaluate(minutes: float) -> None:
        saved = copy.deepcopy(loop.averaged["vae"])
        if not frozen:
            normalise(saved)
        print(f"{minutes:6.1f} min  PSNR {psnr(saved):.1f} dB", flush=True)
        saved.save_pretrained(folder / "vae")

    loop.run(loss_of_batch, evaluate)


def _examples(count: int = 256) -> np.ndarray:
    rng = random.Random(7)
    return np.stack([data.draw(s, rng) for s in data.training_scenes(rng, count)])


@torch.no_grad()
def psnr(vae: AutoencoderKL) -> float:
    """Of the reconstructions, in decibels."""
    pictures = _examples()
    decoded = [to_pictures(vae.decode(vae.encode(x).latent_dist.mean).sample) for x in to_tensor(pictures).split(32)]
    error = np.mean((np.concatenate(decoded).astype(np.float32) - pictures) ** 2)
    return float(10 * np.log10(255**2 / error))


@torch.no_grad()
def normalise(vae: AutoencoderKL) -> None:
    """Makes the pipelines see latents of mean 0 and std 1: by the configuration, or by the 1x1 convolutions."""
    latents = torch.cat([vae.encode(x).latent_dist.mean for x in to_tensor(_examples()).split(32)])
    if vae.quant_conv is not None:
        standardise(vae, latents)
    else:
        vae.register_to_config(scaling_factor=1 / float(latents.std()), shift_factor=float(latents.mean()))


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Folds each channel's mean and std, over `latents` [B, C, h, w], into the 1x1 convolutions around them.

    Stable Diffusion's pipeline knows one scale for all channels and no shift; unequal channels would learn unequally.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv  # `into` gives means, then log variances
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[channels:] -= 2 * std.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]
