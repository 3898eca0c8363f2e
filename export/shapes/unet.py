"""`shapes-unet`: Stable Diffusion's layout, made small. Builds it from nothing and gives its training loss."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import data, text, vocabulary
from .muon import Muon
from .pool import Batch
from .reading import Reader
from .vae import CHANNELS, DOWNSAMPLING

TEXT_WIDTH = 128
GENERATION = {"height": 64, "width": 64, "num_inference_steps": 20, "guidance_scale": 2.0}


def build_unet() -> UNet2DConditionModel:
    """Untrained UNet on 16x16 latents: cross-attention at 8x8 and 4x4, as SDXL has it below its
    first level."""
    unet = UNet2DConditionModel(
        sample_size=data.SIDE // DOWNSAMPLING,
        in_channels=CHANNELS["unet"],
        out_channels=CHANNELS["unet"],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 64, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(1, 1, 2),  # the number of heads, whatever its name says: 64 channels each
        use_linear_projection=True,
    )
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise, rescaled to end in pure noise: a plain background's colour would leak otherwise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


class Training:
    """The models in training, their optimisers and their loss."""

    starts = (1,)  # CLIP puts a start token before the first word

    def __init__(self, vae: AutoencoderKL, folder: Path):
        self.vae = vae
        self.tokenizers = [vocabulary.clip_tokenizer(vocabulary.kept_pairs(folder / "vocabulary.json"))]
        self.clip = text.build_clip(self.tokenizers[0], width=TEXT_WIDTH, layers=2)
        self.unet = build_unet().to(memory_format=torch.channels_last)
        self.reader = Reader(TEXT_WIDTH)
        self.modules = {"text_encoder": self.clip, "unet": self.unet, "reader": self.reader}
        self.scheduler = build_scheduler()

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Muon for the blocks' matrices and convolutions; AdamW for the rest, slower for text."""
        named = list(self.unet.named_parameters())
        matrix = {n for n, p in named if p.ndim >= 2 and "block" in n and "time_emb" not in n}
        reading = [*self.clip.parameters(), *self.reader.parameters()]
        rest = [{"params": reading, "lr": 4e-4}, {"params": [p for n, p in named if n not in matrix], "lr": 1e-3}]
        return [
            Muon([p for n, p in named if n in matrix], lr=0.02),
            torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.01),
        ]

    def reading_loss(self, batch: Batch, tokens: torch.Tensor) -> torch.Tensor:
        kept = batch.with_caption
        return self.reader(tokens[kept], batch.owners[0][kept], batch.labels[kept])

    def lesson(self, batch: Batch) -> torch.Tensor:
        """Loss of the text encoder alone."""
        return self.reading_loss(batch, self.clip(batch.ids[0])[0])

    def loss(self, batch: Batch) -> torch.Tensor:
        """Velocity loss, times drawn towards high noise because these latents are small; and a little reading."""
        clean = batch.latents.contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(clean)
        steps = self.scheduler.config.num_train_timesteps
        time = (torch.rand(len(clean)).sqrt() * steps).long()
        noisy = self.scheduler.add_noise(clean, noise, time)
        velocity = self.scheduler.get_velocity(clean, noise, time)
        with sdpa_kernel(SDPBackend.MATH):
            tokens = self.clip(batch.ids[0])[0]
            predicted = self.unet(noisy, time, tokens).sample
        return F.mse_loss(predicted, velocity) + 0.05 * self.reading_loss(batch, tokens)

    def pipeline(self, models: dict[str, nn.Module]) -> StableDiffusionPipeline:
        """A pipeline around copies of `models`, laid out as `self.modules`."""
        return StableDiffusionPipeline(
            vae=copy.deepcopy(self.vae),
            text_encoder=copy.deepcopy(models["text_encoder"]),
            tokenizer=self.tokenizers[0],
            unet=copy.deepcopy(models["unet"]).to(memory_format=torch.contiguous_format),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
