"""Tiny random models from the real classes, saved as float16 safetensors as a hub repository would hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "<pad> <end> <unknown> a red green blue small large circle square cross on above below".split()  # noqa: SIM905
CLIP = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 16, "projection_dim": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False,
}  # fmt: skip
VAE = {
    "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
UNET = {
    "sample_size": 16, "block_out_channels": (32, 64), "norm_num_groups": 8, "cross_attention_dim": 32,
    "attention_head_dim": 2, "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
}  # fmt: skip
UNET_XL = UNET | {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),  # the middle block has attention anyway
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 32 + 6 * 8, "use_linear_projection": True,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6), "guidance_embeds": False,
}  # fmt: skip
SD21 = UNET | {  # Stable Diffusion 2.1: heads of equal width, linear projections
    "use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True,
}  # fmt: skip
SD3 = {  # the first block as in 3.5-medium, with a second attention; the last without a text stream
    "sample_size": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 96,
    "caption_projection_dim": 32, "pooled_projection_dim": 64, "in_channels": 4, "out_channels": 4,
    "pos_embed_max_size": 12, "qk_norm": "rms_norm", "dual_attention_layers": (0,),
}  # fmt: skip
PIXART = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 1,
    "cross_attention_dim": 32, "sample_size": 16, "caption_channels": 32, "use_additional_conditions": False,
}  # fmt: skip
SANA = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 32,
    "sample_size": 8,
}  # fmt: skip
GEMMA2 = {  # a window of attention shorter than a prompt would show; SANA's prompts are far shorter than Gemma's
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
DC = {
    "latent_channels": 4, "attention_head_dim": 8, "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "interpolate", "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (16, 16),
    "decoder_block_out_channels": (16, 16), "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)),
    "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu", "scaling_factor": 0.4,
}  # fmt: skip
QWEN_IMAGE = {  # of the last block, nothing reads what becomes of the text
    "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
QWEN_VAE = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [2, 2], "num_res_blocks": 1, "temperal_downsample": [True],
    "latents_mean": [-0.7, 0.1, 0.4, -0.3], "latents_std": [2.8, 1.4, 2.3, 1.1],
}  # fmt: skip
QWEN_VL = {
    "text_config": {
        "vocab_size": 640, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    },
    "vision_config": {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    },
}  # fmt: skip

QWEN_INSTRUCTION = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:"
)

GRAPHS = [  # (model, component): every kind of graph once
    *(("flux", name) for name in ("text_encoder", "text_encoder_2", "transformer", "vae_decoder", "vae_encoder")),
    *(("sd", name) for name in ("unet", "vae_decoder")),
    *(("sdxl", name) for name in ("text_encoder_2", "unet")),
]


def flux(root: Path, **changes: Any) -> Path:
    """A FluxPipeline directory; `changes` to the transformer's config."""
    torch.manual_seed(0)
    _save(root / "transformer", diffusers.FluxTransformer2DModel(**FLUX | changes))
    _save(root / "text_encoder", transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)))
    _save(root / "text_encoder_2", transformers.T5EncoderModel(transformers.T5Config(**T5)))
    vae = VAE | {"latent_channels": 4, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}
    _save(root / "vae", diffusers.AutoencoderKL(**vae))
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        _tokenizer().save_pretrained(root / name)
    _index(root, "FluxPipeline", {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": [None, None], "feature_extractor": [None, None],
    })  # fmt: skip
    _generation(root, {"max_sequence_length": 12, "true_cfg_scale": 2.0, "negative_prompt": ""})
    return root


def stable_diffusion(root: Path) -> Path:
    """A StableDiffusionPipeline directory."""
    torch.manual_seed(1)
    _save(root / "unet", diffusers.UNet2DConditionModel(**UNET))
    _save(root / "text_encoder", transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)))
    _save(root / "vae", diffusers.AutoencoderKL(**VAE, latent_channels=4))
    diffusers.DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(root / "scheduler")
    _tokenizer().save_pretrained(root / "tokenizer")
    _index(root, "StableDiffusionPipeline", {
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None], "feature_extractor": [None, None],
    })  # fmt: skip
    _generation(root, {"guidance_scale": 3.0, "negative_prompt": ""})
    return root


def stable_diffusion_xl(root: Path) -> Path:
    """A StableDiffusionXLPipeline directory without tokenizers: its graphs are tested, not its pictures."""
    torch.manual_seed(2)
    _save(root / "unet", diffusers.UNet2DConditionModel(**UNET_XL))
    config = transformers.CLIPTextConfig(**CLIP)
    _save(root / "text_encoder", transformers.CLIPTextModel(config))
    _save(root / "text_encoder_2", transformers.CLIPTextModelWithProjection(config))
    _save(root / "vae", diffusers.AutoencoderKL(**VAE, latent_channels=4, force_upcast=True))
    diffusers.EulerDiscreteScheduler().save_pretrained(root / "scheduler")
    _index(root, "StableDiffusionXLPipeline", {
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    })  # fmt: skip
    return root


def stable_diffusion_21(root: Path) -> Path:
    """Stable Diffusion 2.1: v-prediction, another UNet and CLIP than 1.5's."""
    stable_diffusion(root)
    torch.manual_seed(3)
    _save(root / "unet", diffusers.UNet2DConditionModel(**SD21))
    clip = CLIP | {"hidden_act": "gelu", "num_hidden_layers": 3}
    _save(root / "text_encoder", transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip)))
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction")
    scheduler.save_pretrained(root / "scheduler")
    return root


def stable_diffusion_xl_turbo(root: Path) -> Path:
    """SDXL-Turbo: SDXL in every shape, with a scheduler that takes few steps and adds noise at each."""
    stable_diffusion_xl(root)
    diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing").save_pretrained(root / "scheduler")
    index = json.loads((root / "model_index.json").read_text())
    for name in ("tokenizer", "tokenizer_2"):
        _tokenizer().save_pretrained(root / name)
        index[name] = ["transformers", "PreTrainedTokenizerFast"]
    index["scheduler"] = ["diffusers", "EulerAncestralDiscreteScheduler"]
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def stable_diffusion_3(root: Path) -> Path:
    """A StableDiffusion3Pipeline directory with all three text encoders."""
    torch.manual_seed(4)
    _save(root / "transformer", diffusers.SD3Transformer2DModel(**SD3))
    config = transformers.CLIPTextConfig(**CLIP)
    for name in ("text_encoder", "text_encoder_2"):
        _save(root / name, transformers.CLIPTextModelWithProjection(config))
    wider = transformers.T5Config(**T5 | {"d_model": 96})  # than both CLIPs together, as T5-XXL is
    _save(root / "text_encoder_3", transformers.T5EncoderModel(wider))
    vae = VAE | {"latent_channels": 4, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}
    _save(root / "vae", diffusers.AutoencoderKL(**vae))
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    tokenizers = {f"tokenizer{n}": ["transformers", "PreTrainedTokenizerFast"] for n in ("", "_2", "_3")}
    for name in tokenizers:  # CLIP's as long as its table of positions, as CLIP's own are
        _tokenizer(CLIP["max_position_embeddings"]).save_pretrained(root / name)
    _index(root, "StableDiffusion3Pipeline", {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": [None, None], "feature_extractor": [None, None],
    } | tokenizers)  # fmt: skip
    _generation(root, {"guidance_scale": 3.0, "negative_prompt": "", "max_sequence_length": 12})
    return root


def pixart(root: Path) -> Path:
    """A PixArtSigmaPipeline directory."""
    torch.manual_seed(5)
    _save(root / "transformer", diffusers.PixArtTransformer2DModel(**PIXART))
    _save(root / "text_encoder", transformers.T5EncoderModel(transformers.T5Config(**T5)))
    vae = VAE | {"latent_channels": 4, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}
    _save(root / "vae", diffusers.AutoencoderKL(**vae))  # as SD3's, so that one export serves both
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(root / "scheduler")
    _tokenizer().save_pretrained(root / "tokenizer")
    _index(root, "PixArtSigmaPipeline", {
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    })  # fmt: skip
    _generation(root, {"guidance_scale": 3.0, "negative_prompt": "", "max_sequence_length": 12,
                       "use_resolution_binning": False, "clean_caption": False})  # fmt: skip
    return root


def sana(root: Path) -> Path:
    """A SanaPipeline directory."""
    torch.manual_seed(6)
    _save(root / "transformer", diffusers.SanaTransformer2DModel(**SANA))
    _save(root / "text_encoder", transformers.Gemma2Model(transformers.Gemma2Config(**GEMMA2)))
    _save(root / "vae", diffusers.AutoencoderDC(**DC))
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    _tokenizer().save_pretrained(root / "tokenizer")
    _index(root, "SanaPipeline", {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"], "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "SanaTransformer2DModel"], "vae": ["diffusers", "AutoencoderDC"],
    })  # fmt: skip
    _generation(root, {"guidance_scale": 3.0, "negative_prompt": "", "max_sequence_length": 12,
                       "use_resolution_binning": False, "clean_caption": False})  # fmt: skip
    return root


def flux_fill(root: Path) -> Path:
    """FLUX.1 Fill: the transformer also reads the picture's latents (as many) and its mask (2 x 2 pixels a cell)."""
    return _flux_tool(root, "FluxFillPipeline", 16 + 16 + 16)


def flux_control(root: Path) -> Path:
    """FLUX.1 Canny or Depth: the transformer also reads the picture's latents."""
    return _flux_tool(root, "FluxControlPipeline", 16 + 16)


def _flux_tool(root: Path, cls: str, in_channels: int) -> Path:
    flux(root, in_channels=in_channels, out_channels=16, guidance_embeds=True)
    index = json.loads((root / "model_index.json").read_text())
    del index["image_encoder"], index["feature_extractor"]
    (root / "model_index.json").write_text(json.dumps(index | {"_class_name": cls}))
    _generation(root, {"max_sequence_length": 12, "guidance_scale": 10.0})
    return root


def pictures(folder: Path, count: int, mask: bool = True, size: tuple[int, int] = (48, 40)) -> Path:
    """A directory of `count` coloured pictures of noise; with `mask`, half of each is to be drawn anew."""
    folder.mkdir()
    drawn = np.random.default_rng(5)
    for number in range(count):
        Image.fromarray(drawn.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"picture-{number}.png")
        if mask:
            white = np.zeros(size, np.uint8)
            white[:, : size[1] // 2] = 255
            Image.fromarray(white).save(folder / f"picture-{number}.mask.png")
    return folder


def qwen_image(root: Path) -> Path:
    """A QwenImagePipeline directory."""
    torch.manual_seed(7)
    _save(root / "transformer", diffusers.QwenImageTransformer2DModel(**QWEN_IMAGE))
    text = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**QWEN_VL))
    _save(root / "text_encoder", text)
    _save(root / "vae", diffusers.AutoencoderKLQwenImage(**QWEN_VAE))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    scheduler.save_pretrained(root / "scheduler")
    _qwen_tokenizer().save_pretrained(root / "tokenizer")
    _index(root, "QwenImagePipeline", {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"], "vae": ["diffusers", "AutoencoderKLQwenImage"],
    })  # fmt: skip
    _generation(root, {"true_cfg_scale": 3.0, "negative_prompt": " ", "max_sequence_length": 16})
    return root


def _save(folder: Path, module: Any) -> None:
    """Weights that differ from the initial ones everywhere, biases and norms included, in float16."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    module.half().save_pretrained(folder, safe_serialization=True)
    config = folder / "config.json"
    values = json.loads(config.read_text())
    if "dtype" in values:  # else the text encoders would load as float16 beside float32 modules
        config.write_text(json.dumps(values | {"dtype": "float32"}))


def _tokenizer(length: int = 12) -> Any:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", model_max_length=length
    )


def _qwen_tokenizer() -> Any:
    """Qwen2's byte pairs, which read any text, with one token a word for the pipeline's instruction, as Qwen's have."""
    text = f"system\n{QWEN_INSTRUCTION}\nuser\nassistant\n {' '.join(WORDS[3:])}"
    special = ["<|im_start|>", "<|im_end|>"]
    plain = transformers.Qwen2Tokenizer()
    return plain.train_new_from_iterator([text] * 2, 640, new_special_tokens=special, show_progress=False)


def _index(root: Path, cls: str, modules: dict[str, Any]) -> None:
    (root / "model_index.json").write_text(json.dumps({"_class_name": cls, "_diffusers_version": "0.35.0"} | modules))


def _generation(root: Path, extra: dict[str, Any]) -> None:
    call = {"height": 32, "width": 32, "num_inference_steps": 3}
    (root / "generation.json").write_text(json.dumps(call | extra))
