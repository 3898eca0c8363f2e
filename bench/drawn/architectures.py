"""The published hyper-parameters of four pipelines, and small ones of the same make.

Sources: the model cards' config.json files of FLUX.1-dev, stable-diffusion-xl-base-1.0, PixArt-Sigma-XL-2-1024-MS and
Sana_1600M_1024px_BF16_diffusers. What is not named here is the class's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.drawn.tokenizer import CLIP_TOKENS, GEMMA_TOKENS, T5_TOKENS, Tokens

Config = Mapping[str, Any]

SHALLOW = 2  # layers of a text encoder that is not asked for in full; SDXL reads the last but one
TINY_WORDS = 320  # room for 256 bytes and the special tokens


@dataclass(frozen=True)
class Module:
    """A folder of weights. `tiny` replaces entries of `config`; `depth` names the entry that counts a text encoder's
    layers, None for any other module."""

    cls: str
    config: Config
    tiny: Config
    depth: str | None = None

    @property
    def library(self) -> str:
        return "transformers" if self.depth else "diffusers"


@dataclass(frozen=True)
class Architecture:
    """A pipeline: its weights' dtype as published, its modules, scheduler and tokenizers by folder, its settings.

    `generation`: keyword arguments of the pipeline's call where the model is tiny; a full one has its family's.
    """

    pipeline: str
    dtype: str
    modules: Mapping[str, Module]
    scheduler: tuple[str, Config]
    tokenizers: Mapping[str, Tokens]
    settings: Config = field(default_factory=dict)
    generation: Config = field(default_factory=dict)


_CLIP_TINY = {
    "vocab_size": TINY_WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "projection_dim": 32,
}  # fmt: skip
_CLIP_L = Module(
    "CLIPTextModel",
    {
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    },
    _CLIP_TINY,
    "num_hidden_layers",
)  # fmt: skip
_CLIP_BIG_G = Module(
    "CLIPTextModelWithProjection",
    {
        "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
        "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 1280,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    },
    _CLIP_TINY,
    "num_hidden_layers",
)  # fmt: skip
_T5_XXL = Module(
    "T5EncoderModel",
    {
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "use_cache": False,
        "tie_word_embeddings": False, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    },
    {"vocab_size": TINY_WORDS, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "num_layers",
)  # fmt: skip
_GEMMA_2_2B = Module(
    "Gemma2Model",
    {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "max_position_embeddings": 8192, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    },
    {
        "vocab_size": TINY_WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16,
        "max_position_embeddings": 512,
    },
    "num_hidden_layers",
)  # fmt: skip

_KL = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_KL_TINY = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
_KL_SDXL = Module("AutoencoderKL", _KL | {"latent_channels": 4, "scaling_factor": 0.13025}, _KL_TINY)
_CALL = {"height": 32, "width": 32, "num_inference_steps": 2}

FLUX = Architecture(
    "FluxPipeline",
    "bfloat16",
    {
        "transformer": Module(
            "FluxTransformer2DModel",
            {
                "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
                "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
                "axes_dims_rope": (16, 56, 56), "guidance_embeds": True, "patch_size": 1,
            },
            {
                "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32,
                "axes_dims_rope": (4, 6, 6),
            },
        ),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_XXL,
        "vae": Module(
            "AutoencoderKL",
            _KL | {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
                   "use_post_quant_conv": False},
            _KL_TINY | {"latent_channels": 4},
        ),
    },
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
    {"tokenizer": CLIP_TOKENS, "tokenizer_2": T5_TOKENS},
    generation=_CALL | {"guidance_scale": 3.5, "max_sequence_length": 16},
)  # fmt: skip

SDXL = Architecture(
    "StableDiffusionXLPipeline",
    "float16",
    {
        "unet": Module(
            "UNet2DConditionModel",
            {
                "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
                "transformer_layers_per_block": (1, 2, 10), "layers_per_block": 2, "cross_attention_dim": 2048,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
            },
            {
                "sample_size": 16, "block_out_channels": (32, 64), "attention_head_dim": (2, 4), "norm_num_groups": 8,
                "transformer_layers_per_block": (1, 2), "layers_per_block": 1, "cross_attention_dim": 64,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8,
            },
        ),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
        "vae": _KL_SDXL,
    },
    (
        "EulerDiscreteScheduler",
        {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "timestep_spacing": "leading",
        },
    ),
    {"tokenizer": CLIP_TOKENS, "tokenizer_2": CLIP_TOKENS},
    {"force_zeros_for_empty_prompt": True},
    _CALL | {"guidance_scale": 5.0, "negative_prompt": ""},
)  # fmt: skip

PIXART = Architecture(
    "PixArtSigmaPipeline",
    "float16",
    {
        "transformer": Module(
            "PixArtTransformer2DModel",
            {
                "sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
                "in_channels": 4, "out_channels": 8, "patch_size": 2, "cross_attention_dim": 1152,
                "caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False,
            },
            {
                "sample_size": 16, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
                "cross_attention_dim": 32, "caption_channels": 32,
            },
        ),
        "text_encoder": _T5_XXL,
        "vae": _KL_SDXL,
    },
    ("DPMSolverMultistepScheduler", {}),
    {"tokenizer": T5_TOKENS},
    generation=_CALL | {"guidance_scale": 4.5, "negative_prompt": "", "max_sequence_length": 16,
                        "use_resolution_binning": False, "clean_caption": False},
)  # fmt: skip

SANA = Architecture(
    "SanaPipeline",
    "bfloat16",
    {
        "transformer": Module(
            "SanaTransformer2DModel",
            {
                "sample_size": 32, "num_layers": 20, "num_attention_heads": 70, "attention_head_dim": 32,
                "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
                "caption_channels": 2304, "in_channels": 32, "out_channels": 32, "mlp_ratio": 2.5, "patch_size": 1,
                "attention_bias": False, "interpolation_scale": None,
            },
            {
                "sample_size": 8, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
                "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
                "caption_channels": 32, "in_channels": 4, "out_channels": 4,
            },
        ),
        "text_encoder": _GEMMA_2_2B,
        "vae": Module(
            "AutoencoderDC",
            {
                "latent_channels": 32, "attention_head_dim": 32, "downsample_block_type": "conv",
                "upsample_block_type": "interpolate", "scaling_factor": 0.41407,
                "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
                "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
                "encoder_layers_per_block": (2, 2, 2, 3, 3, 3), "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
                "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
                "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
                "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
            },
            {
                "latent_channels": 4, "attention_head_dim": 8,
                "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
                "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
                "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
                "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
                "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)),
            },
        ),
    },
    (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
    {"tokenizer": GEMMA_TOKENS},
    generation=_CALL | {"guidance_scale": 4.5, "negative_prompt": "", "max_sequence_length": 16,
                        "use_resolution_binning": False, "clean_caption": False},
)  # fmt: skip

ARCHITECTURES = {"flux": FLUX, "sdxl": SDXL, "pixart": PIXART, "sana": SANA}
