"""`shapes-dit`: FLUX's layout, made small. Builds it from nothing and gives its training loss."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from . import text, vocabulary
from .muon import Muon
from .pool import Batch
from .reading import Reader
from .vae import CHANNELS

SHIFT = 3.0  # the scheduler's: most of what a caption decides is decided at high noise
GENERATION = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 12,
    "true_cfg_scale": 2.5,
    "negative_prompt": "",
    "max_sequence_length": vocabulary.MAX_TOKENS,
}


def build_t5(vocabulary_size: int) -> T5EncoderModel:
    """Untrained T5 encoder, 2 layers of width 128.

    FLUX's text ids are all zero: the order of the words reaches the transformer through this encoder alone. So its
    position bias starts structured: one head each looks at the word before, the second before, all to the left, all
    to the right.
    """
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=text.round_up(vocabulary_size),
            d_model=128,
            d_kv=32,
            num_heads=4,
            d_ff=256,
            num_layers=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    with torch.no_grad():
        bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
        bias[1, 0] = bias[2, 1] = 4.0  # buckets 1..15: that many to the left; 17..31: to the right
        bias[1:16, 2] = bias[17:, 3] = 2.0
    return t5


def build_transformer() -> FluxTransformer2DModel:
    """Untrained FLUX transformer: 3 heads of 64, 2 double and 3 single blocks, all widths multiples of 64."""
    dit = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS["dit"],
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    for name, weight in dit.named_parameters():  # adaLN-zero and a zero output, as in DiT
        if (".norm" in name and "linear" in name) or name.startswith(("proj_out", "norm_out")):
            nn.init.zeros_(weight)
    return dit


class Training:
    """The models in training, their optimisers and their loss."""

    starts = (1, 0)  # CLIP puts a start token before the first word, T5 does not

    def __init__(self, vae: AutoencoderKL, folder: Path):
        self.vae = vae
        self.tokenizers = [
            vocabulary.clip_tokenizer(vocabulary.kept_pairs(folder / "vocabulary.json")),
            vocabulary.t5_tokenizer(),
        ]
        self.clip: CLIPTextModel = text.build_clip(self.tokenizers[0], width=64, layers=2)
        self.t5 = build_t5(len(self.tokenizers[1]))
        self.transformer = build_transformer()
        self.readers = nn.ModuleList([Reader(64), Reader(128)])
        self.modules = {
            "text_encoder": self.clip,
            "text_encoder_2": self.t5,
            "transformer": self.transformer,
            "readers": self.readers,
        }
        self.fast = torch.compile(self.transformer)
        side = 8  # tokens a side: 64 pixels, 4 a latent cell, 2x2 cells a token
        self.image_ids = FluxPipeline._prepare_latent_image_ids(1, side, side, "cpu", torch.float32)
        self.text_ids = torch.zeros(vocabulary.MAX_TOKENS, 3)

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Muon for the blocks' matrices; AdamW for the rest, slower for text: T5's attention saturates at 2e-3."""
        named = list(self.transformer.named_parameters())
        matrix = {n for n, p in named if p.ndim == 2 and "transformer_blocks" in n and ".norm" not in n}
        reading = [p for m in (self.clip, self.t5, self.readers) for p in m.parameters()]
        rest = [{"params": reading, "lr": 4e-4}, {"params": [p for n, p in named if n not in matrix], "lr": 2e-3}]
        return [
            Muon([p for n, p in named if n in matrix], lr=0.02),
            torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.01),
        ]

    def reading_loss(self, batch: Batch, pooled: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        kept = batch.with_caption
        clip_reader, t5_reader = self.readers
        loss = clip_reader.read_whole(pooled[kept], batch.labels[kept])
        return loss + t5_reader(tokens[kept], batch.owners[1][kept], batch.labels[kept])

    def lesson(self, batch: Batch) -> torch.Tensor:
        """Loss of the text encoders alone."""
        return self.reading_loss(batch, self.clip(batch.ids[0]).pooler_output, self.t5(batch.ids[1])[0])

    def loss(self, batch: Batch) -> torch.Tensor:
        """Flow-matching loss at logit-normal times whose mean matches the scheduler's shift, and a little reading."""
        count, channels, height, width = batch.latents.shape
        clean = FluxPipeline._pack_latents(batch.latents, count, channels, height, width)
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(count) + 1.1)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's flash kernel has a slow backward
            pooled = self.clip(batch.ids[0]).pooler_output
            tokens = self.t5(batch.ids[1])[0]
            flow = self.fast(
                hidden_states=noisy,
                timestep=sigma,
                pooled_projections=pooled,
                encoder_hidden_states=tokens,
                txt_ids=self.text_ids,
                img_ids=self.image_ids,
                return_dict=False,
            )[0]
        return F.mse_loss(flow, noise - clean) + 0.05 * self.reading_loss(batch, pooled, tokens)

    def pipeline(self, models: dict[str, nn.Module]) -> FluxPipeline:
        """A pipeline around copies of `models`, laid out as `self.modules`."""
        copies = {k: copy.deepcopy(models[k]) for k in ("text_encoder", "text_encoder_2", "transformer")}
        clip, t5 = self.tokenizers
        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        return FluxPipeline(scheduler, copy.deepcopy(self.vae), tokenizer=clip, tokenizer_2=t5, **copies)
