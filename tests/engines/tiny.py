"""Tiny random pipelines and artifacts of them, complete in every file, built in seconds.

The graphs come from torch's TorchScript exporter: the tests need any right graph quickly, not the compiler's own.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from artifact import manifest
from artifact.files import write_json
from artifact.pictures import PictureRule, Pictures, write_pictures
from artifact.sampling import LatentRule, initial_noise, sample

WORDS = 8  # tokens in a prompt
WIDTH = 32  # of both text encoders
SIDE = 32  # pixels of an image
PROMPTS = [
    "a large red circle at the top on white",
    "a small blue square left of a large green cross on grey",
    "a small cyan triangle in the centre on black",
]


@dataclass(frozen=True)
class Tiny:
    """An artifact and the torch pipeline that it was made of."""

    root: Path
    pipe: Any
    generation: dict[str, Any]
    rule: LatentRule
    pictures: Pictures | None = None

    def noise(self, *seeds: int) -> np.ndarray:
        return initial_noise(self.rule, seeds, SIDE, SIDE)


def flux(root: Path) -> Tiny:
    """FLUX's layout: two text encoders, a packed transformer, true classifier-free guidance."""
    torch.manual_seed(1)
    t5 = T5EncoderModel(T5Config(vocab_size=64, d_model=WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=2))
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(shift_factor=0.1),
        text_encoder=_clip(CLIPTextModel), tokenizer=_tokenizer(), text_encoder_2=t5, tokenizer_2=_tokenizer(),
        transformer=transformer,
    )  # fmt: skip
    generation = {
        "num_inference_steps": 3, "height": SIDE, "width": SIDE, "max_sequence_length": WORDS,
        "true_cfg_scale": 2.0, "negative_prompt": "",
    }  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 16, 16), "encoder_hidden_states": torch.randn(2, WORDS, WIDTH),
        "pooled_projections": torch.randn(2, WIDTH), "timestep": torch.rand(2), "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(WORDS, 3),
    }  # fmt: skip
    return _artifact(root, pipe, generation, inputs, LatentRule(4, 4, True))


def flux_fill(root: Path) -> Tiny:
    """FLUX.1 Fill's layout: noise, a picture's latents and the pixels of its mask (4 x 4 a cell) in one token."""
    return _flux_tool(root, diffusers.FluxFillPipeline, 4 * (4 + 4 + 16), PictureRule("image", "mask_image"))


def flux_control(root: Path) -> Tiny:
    """FLUX.1 Canny's and Depth's layout: noise and a picture's latents in one token."""
    return _flux_tool(root, diffusers.FluxControlPipeline, 4 * (4 + 4), PictureRule("control_image"))


def _flux_tool(root: Path, cls: Any, in_channels: int, rule: PictureRule) -> Tiny:
    torch.manual_seed(4)
    t5 = T5EncoderModel(T5Config(vocab_size=64, d_model=WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=2))
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=in_channels, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )  # fmt: skip
    pipe = cls(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(shift_factor=0.1),
        text_encoder=_clip(CLIPTextModel), tokenizer=_tokenizer(), text_encoder_2=t5, tokenizer_2=_tokenizer(),
        transformer=transformer,
    )  # fmt: skip
    generation = {
        "num_inference_steps": 3, "height": SIDE, "width": SIDE, "max_sequence_length": WORDS, "guidance_scale": 10.0,
    }  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 16, in_channels), "encoder_hidden_states": torch.randn(2, WORDS, WIDTH),
        "pooled_projections": torch.randn(2, WIDTH), "timestep": torch.rand(2), "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(WORDS, 3), "guidance": torch.full((2,), 10.0),
    }  # fmt: skip
    return _artifact(root, pipe, generation, inputs, LatentRule(4, 4, True), pictures(rule, len(PROMPTS)))


def pictures(rule: PictureRule, count: int) -> Pictures:
    """Noise in colours; of every other picture the right half is to be drawn anew, else the lower one."""
    drawn = np.random.default_rng(6)
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    masks[::2, :, SIDE // 2 :] = masks[1::2, SIDE // 2 :] = 255
    return Pictures(rule, drawn.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8), masks if rule.mask else None)


def stable_diffusion(root: Path) -> Tiny:
    """Stable Diffusion's layout: one text encoder, a UNet, a noise-predicting scheduler."""
    torch.manual_seed(2)
    pipe = diffusers.StableDiffusionPipeline(
        scheduler=_ddim(), vae=_vae(), text_encoder=_clip(CLIPTextModel), tokenizer=_tokenizer(), unet=_unet(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    generation = {"num_inference_steps": 3, "height": SIDE, "width": SIDE, "guidance_scale": 3.0}
    return _artifact(root, pipe, generation, _unet_inputs(WIDTH), LatentRule(4, 4, False))


def stable_diffusion_xl(root: Path) -> Tiny:
    """SDXL's layout: two CLIPs read at their penultimate layer, pooled and size conditioning."""
    torch.manual_seed(3)
    unet = _unet(
        block_out_channels=(16,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        scheduler=_ddim(), vae=_vae(), text_encoder=_clip(CLIPTextModel), tokenizer=_tokenizer(), unet=unet,
        text_encoder_2=_clip(CLIPTextModelWithProjection), tokenizer_2=_tokenizer(),
        force_zeros_for_empty_prompt=False,
    )  # fmt: skip
    generation = {"num_inference_steps": 3, "height": SIDE, "width": SIDE, "guidance_scale": 3.0,
                  "negative_prompt": "grey"}  # fmt: skip
    extra = {"text_embeds": torch.randn(2, WIDTH), "time_ids": torch.rand(2, 6) * 32}
    return _artifact(root, pipe, generation, _unet_inputs(2 * WIDTH) | extra, LatentRule(4, 4, False))


def _tokenizer() -> PreTrainedTokenizerFast:
    words = sorted({w for p in PROMPTS for w in p.split()})
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[BOS]", "[EOS]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=WORDS, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


def _clip(cls: type) -> Any:
    return cls(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=WORDS,
            projection_dim=WIDTH,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )  # fmt: skip
    )


def _vae(**more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, sample_size=SIDE,
        force_upcast=False, **more,
    )  # fmt: skip


def _unet(**more: Any) -> Any:
    config = {
        "sample_size": 8, "block_out_channels": (16, 16), "layers_per_block": 1, "cross_attention_dim": WIDTH,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 8, "norm_num_groups": 8, **more,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**config)


def _unet_inputs(width: int) -> dict[str, torch.Tensor]:
    return {
        "sample": torch.randn(2, 4, 8, 8), "timestep": torch.rand(2) * 900,
        "encoder_hidden_states": torch.randn(2, WORDS, width),
    }  # fmt: skip


def _ddim() -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )


class _Call(torch.nn.Module):
    """A module whose forward takes its inputs by position and whose outputs are tensors."""

    def __init__(self, module: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.call(self.module, *inputs)


def export(
    path: Path, module: torch.nn.Module, call: Callable[..., Any], inputs: dict[str, torch.Tensor], outputs: list[str],
    dynamic: dict[str, dict[int, str]] | None = None,
) -> None:  # fmt: skip
    """Write `call(module, *inputs)` as an ONNX file; the first axis of what has a batch is dynamic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    batched = {n: {0: "batch"} for n in inputs if not n.endswith("_ids") or n in ("input_ids", "time_ids")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.register_custom_op_symbolic("aten::rms_norm", _rms_norm, 17)
        torch.onnx.register_custom_op_symbolic("aten::unflatten", _unflatten, 17)
        torch.onnx.export(
            _Call(module, call).eval(), tuple(inputs.values()), str(path), input_names=list(inputs),
            output_names=outputs, dynamic_axes=dynamic or batched, dynamo=False, opset_version=17,
        )  # fmt: skip


def _rms_norm(g: Any, x: Any, shape: Any, weight: Any, epsilon: Any) -> Any:
    """The TorchScript exporter has no RMSNorm."""
    mean = g.op("ReduceMean", g.op("Mul", x, x), axes_i=[-1], keepdims_i=1)
    small = g.op("Constant", value_t=torch.tensor(1e-6))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", g.op("Add", mean, small))), weight)


def _unflatten(g: Any, x: Any, axis: Any, sizes: Any) -> Any:
    """The TorchScript exporter's own one fixes the batch; here [B, L, D] keeps B and L (0)."""
    parts = torch.onnx.symbolic_helper._maybe_get_const(sizes, "is")
    return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor([0, 0, *parts])))


def _denoise(names: list[str]) -> Callable[..., Any]:
    def call(module: Any, *values: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, values, strict=True))
        conditions = {n: given.pop(n) for n in ("text_embeds", "time_ids") if n in given}
        if conditions:
            given["added_cond_kwargs"] = conditions
        return module(**given, return_dict=False)[0]

    return call


def _rounded(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with coarse weights, the tests' "quantised" denoiser."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            scale = layer.weight.data.abs().amax() / 7
            layer.weight.data = (layer.weight.data / scale).round() * scale
    return module


def _artifact(
    root: Path,
    pipe: Any,
    generation: dict[str, Any],
    inputs: dict[str, torch.Tensor],
    rule: LatentRule,
    beside: Pictures | None = None,
) -> Tiny:
    """Export everything, draw the references, write the manifest. Presets: fp16 and int4-rtn."""
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    components: dict[str, Any] = {}
    denoiser = "transformer" if hasattr(pipe, "transformer") else "unet"
    module = getattr(pipe, denoiser)
    for preset, weights in {"fp16": module, "int4-rtn": _rounded(module)}.items():
        export(root / denoiser / f"{preset}.onnx", weights, _denoise(list(inputs)), inputs, ["out_sample"])
    components[denoiser] = {
        "role": "denoiser", "module": denoiser, "class": type(module).__name__, "config": dict(module.config),
        "models": {p: f"{denoiser}/{p}.onnx" for p in ("fp16", "int4-rtn")},
        "inputs": list(inputs), "outputs": ["out_sample"],
    }  # fmt: skip
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            components[name] = _text_encoder(root, name, getattr(pipe, name))
    components |= _vae_graphs(root, pipe.vae)
    folders = {}
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).save_pretrained(root / name)
            folders[name] = name
    references = _references(root, pipe, generation, rule, beside)
    content = {
        "name": root.name, "pipeline": type(pipe).__name__, "source": {"model": "tiny", "sha256": "0" * 64},
        "target": "cpu", "dtype": "float32", "versions": {"torch": torch.__version__}, "generation": generation,
        "pictures": beside.rule.to_json() if beside else None,
        "presets": ["fp16", "int4-rtn"], "components": components, "folders": folders,
        "exports": {denoiser: [{"shapes": {"sample": [2, 4]}, "max_abs_error": 1e-6, "max_abs": 2.0}]},
        "layers": {"int4-rtn": {denoiser: {
            "blocks.0.to_q": _layer(0.2, 32, 32), "blocks.0.to_out": _layer(0.4, 32, 32),
            "blocks.0.up": _layer(0.3, 32, 128),
        }}},
        "references": references, "skipped": ["Nothing was skipped, said aloud."],
    }  # fmt: skip
    names = [str(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_file()]
    manifest.write(root, content | {"files": manifest.record(root, names)})
    return Tiny(root, pipe, generation, rule, beside)


def _layer(error: float, k: int, n: int) -> dict[str, Any]:
    return {"error": error, "alpha": None, "beta": None, "rank": 0, "k": k, "n": n, "scheme": "int4-rtn",
            "bytes": k * n // 2, "bytes_16bit": 2 * k * n}  # fmt: skip


def _text_encoder(root: Path, name: str, module: Any) -> dict[str, Any]:
    clip = not isinstance(module, T5EncoderModel)
    pooled = "text_embeds" if isinstance(module, CLIPTextModelWithProjection) else "pooler_output"
    outputs = ["last_hidden_state", pooled, "penultimate_hidden_state"] if clip else ["last_hidden_state"]

    def call(m: Any, ids: torch.Tensor) -> Any:
        found = m(ids, output_hidden_states=clip)
        return (found.last_hidden_state, found[pooled], found.hidden_states[-2]) if clip else found[0]

    export(root / name / "fp16.onnx", module, call, {"input_ids": torch.randint(4, 30, (2, WORDS))}, outputs)
    return {
        "role": "text_encoder", "module": name, "class": type(module).__name__,
        "config": json.loads(module.config.to_json_string()),
        "models": dict.fromkeys(("fp16", "int4-rtn"), f"{name}/fp16.onnx"), "inputs": ["input_ids"], "outputs": outputs,
    }  # fmt: skip


def _vae_graphs(root: Path, vae: Any) -> dict[str, Any]:
    sizes = {0: "batch", 2: "height", 3: "width"}
    pixels = {0: "batch", 2: "image_height", 3: "image_width"}
    export(root / "vae_decoder/fp16.onnx", vae, lambda m, z: m.decode(z, return_dict=False)[0],
           {"latent_sample": torch.randn(1, 4, 8, 8)}, ["sample"], {"latent_sample": sizes})  # fmt: skip
    export(root / "vae_encoder/fp16.onnx", vae, lambda m, x: m.encode(x).latent_dist.parameters,
           {"sample": torch.randn(1, 3, SIDE, SIDE)}, ["moments"], {"sample": pixels})  # fmt: skip
    described = {}
    for role, given, made in (("vae_decoder", "latent_sample", "sample"), ("vae_encoder", "sample", "moments")):
        described[role] = {
            "role": role, "module": "vae", "class": "AutoencoderKL", "config": dict(vae.config),
            "models": dict.fromkeys(("fp16", "int4-rtn"), f"{role}/fp16.onnx"), "inputs": [given], "outputs": [made],
        }  # fmt: skip
    return described


def _references(
    root: Path, pipe: Any, generation: dict[str, Any], rule: LatentRule, beside: Pictures | None
) -> dict[str, Any]:
    seeds = list(range(len(PROMPTS)))
    noise = initial_noise(rule, seeds, SIDE, SIDE)
    drawn = sample(pipe, PROMPTS, noise, generation, pictures=beside)
    (root / "references/images").mkdir(parents=True)
    arrays = {"noise": noise, "latents": drawn.latents.astype(np.float16), "images": np.ascontiguousarray(drawn.images)}
    save_file(arrays, root / "references/tensors.safetensors")
    for i, image in enumerate(drawn.images):
        Image.fromarray(image).save(root / f"references/images/{i:04}.png")
    write_json(
        root / "references/prompts.json",
        {"prompts": PROMPTS, "seeds": seeds, "generation": generation, "latents": rule.to_json()},
    )
    if beside is not None:
        write_pictures(root / "references/pictures", beside)
    files = sorted(str(p.relative_to(root)) for p in (root / "references").rglob("*") if p.is_file())
    return {"prompts": PROMPTS, "seeds": seeds, "files": files}
