"""Names in LoRA files, as trainers write them, against full-size FLUX.1 and SDXL without their weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from artifact.errors import UserError
from export.components import Component
from export.fake_module import fake_module
from export.lora.file import read_file
from export.lora.model import Model, Part
from export.lora.names import Adapter, lay_over
from tests.export.models import CLIP, T5

SDXL_UNET = {
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True, "layers_per_block": 2,
}  # fmt: skip
PEFT = ("lora_A", "lora_B")
KOHYA = ("lora_down", "lora_up")


def part(module: str, role: str, cls: str, config: dict[str, Any], without: str = "nothing") -> Part:
    component = Component(module, module, role, cls, config)
    made, _ = fake_module(component, "float32")
    shapes = {n: tuple(p.shape) for n, p in made.named_parameters() if n.endswith(".weight") and p.ndim > 1}
    unread = frozenset(n for n in shapes if without in n)
    return Part(component, {n: s for n, s in shapes.items() if n not in unread}, (), unread)


@pytest.fixture(scope="module")
def flux() -> Model:
    return Model(
        "FluxPipeline",
        {
            "transformer": part("transformer", "denoiser", "FluxTransformer2DModel", {"guidance_embeds": True}),
            "text_encoder": part("text_encoder", "text_encoder", "CLIPTextModel", CLIP),
            "text_encoder_2": part("text_encoder_2", "text_encoder", "T5EncoderModel", T5),
        },
    )


@pytest.fixture(scope="module")
def sdxl() -> Model:
    """Its first text encoder without the last layer, which the pipeline does not read."""
    return Model(
        "StableDiffusionXLPipeline",
        {
            "unet": part("unet", "denoiser", "UNet2DConditionModel", SDXL_UNET),
            "text_encoder": part("text_encoder", "text_encoder", "CLIPTextModel", CLIP, without="layers.1."),
            "text_encoder_2": part("text_encoder_2", "text_encoder", "CLIPTextModelWithProjection", CLIP),
        },
    )


def written(path: Path, name: str, ends: tuple[str, str], n: int, inner: tuple[int, ...], rank: int = 4) -> Path:
    rng = np.random.default_rng(0)
    down = rng.standard_normal((rank, *inner)).astype(np.float32)
    up = rng.standard_normal((n, rank, *(1 for _ in inner[1:]))).astype(np.float32)
    save_file({f"{name}.{ends[0]}.weight": down, f"{name}.{ends[1]}.weight": up}, path)
    return path


@pytest.fixture
def laid(tmp_path: Path) -> Callable[..., Adapter]:
    """A file with one pair under a name, laid over a model."""

    def run(model: Model, *what: Any) -> Adapter:
        return lay_over(read_file(written(tmp_path / "lora.safetensors", *what)), model)

    return run


DOWN = "down_blocks.1.attentions.0.transformer_blocks.0"
OLD = ("down", "up")
LINEAR = ("lora_linear_layer.down", "lora_linear_layer.up")


@pytest.mark.parametrize(
    ("name", "ends", "n", "inner", "target"),
    [
        (f"unet.{DOWN}.attn1.to_q", PEFT, 640, (640,), ("unet", f"{DOWN}.attn1.to_q")),
        (f"unet.{DOWN}.attn1.to_q", ("lora.down", "lora.up"), 640, (640,), ("unet", f"{DOWN}.attn1.to_q")),
        (f"{DOWN}.attn1.to_q", ("lora_A.default", "lora_B.default"), 640, (640,), ("unet", f"{DOWN}.attn1.to_q")),
        (f"base_model.model.{DOWN}.attn1.to_q", PEFT, 640, (640,), ("unet", f"{DOWN}.attn1.to_q")),
        (f"unet.{DOWN}.attn1.processor.to_q_lora", OLD, 640, (640,), ("unet", f"{DOWN}.attn1.to_q")),
        (f"unet.{DOWN}.attn1.processor.to_out_lora", OLD, 640, (640,), ("unet", f"{DOWN}.attn1.to_out.0")),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", KOHYA, 640, (2048,),
         ("unet", f"{DOWN}.attn2.to_k")),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0", KOHYA, 640, (640,),
         ("unet", f"{DOWN}.attn1.to_out.0")),
        ("lora_unet_middle_block_1_transformer_blocks_3_ff_net_0_proj", KOHYA, 10240, (1280,),
         ("unet", "mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj")),
        ("lora_unet_output_blocks_2_1_proj_in", KOHYA, 1280, (1280,), ("unet", "up_blocks.0.attentions.2.proj_in")),
        ("lora_unet_input_blocks_1_0_in_layers_2", KOHYA, 320, (320, 3, 3), ("unet", "down_blocks.0.resnets.0.conv1")),
        ("lora_unet_down_blocks_0_resnets_0_conv1", KOHYA, 320, (320, 3, 3), ("unet", "down_blocks.0.resnets.0.conv1")),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", KOHYA, 32, (32,),
         ("text_encoder", "encoder.layers.0.self_attn.q_proj")),
        ("lora_te2_text_model_encoder_layers_1_mlp_fc1", KOHYA, 64, (32,),
         ("text_encoder_2", "encoder.layers.1.mlp.fc1")),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", LINEAR, 32, (32,),
         ("text_encoder", "encoder.layers.0.self_attn.q_proj")),
    ],
)  # fmt: skip
def test_every_spelling_of_sdxl_s_names_is_understood(
    sdxl: Model, laid: Callable, name: str, ends: tuple[str, str], n: int, inner: tuple[int, ...],
    target: tuple[str, str],
) -> None:  # fmt: skip
    (found,) = laid(sdxl, name, ends, n, inner).pairs
    module, weight = found
    assert (module, weight.removesuffix(".weight").removeprefix("text_model.")) == target


@pytest.mark.parametrize(
    ("name", "ends", "n", "inner", "targets"),
    [
        ("lora_unet_double_blocks_3_img_attn_qkv", KOHYA, 9216, (3072,),
         [f"transformer_blocks.3.attn.to_{c}" for c in "qkv"]),
        ("lora_unet_double_blocks_18_txt_attn_qkv", KOHYA, 9216, (3072,),
         [f"transformer_blocks.18.attn.add_{c}_proj" for c in "qkv"]),
        ("lora_unet_single_blocks_37_linear1", KOHYA, 21504, (3072,),
         [f"single_transformer_blocks.37.{c}" for c in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]),
        ("lora_unet_single_blocks_37_linear2", KOHYA, 3072, (15360,), ["single_transformer_blocks.37.proj_out"]),
        ("lora_unet_final_layer_adaLN_modulation_1", KOHYA, 6144, (3072,), ["norm_out.linear"]),
        ("lora_unet_guidance_in_in_layer", KOHYA, 3072, (256,), ["time_text_embed.guidance_embedder.linear_1"]),
        ("diffusion_model.double_blocks.0.img_mlp.0", KOHYA, 12288, (3072,), ["transformer_blocks.0.ff.net.0.proj"]),
        ("lora_transformer_single_transformer_blocks_0_proj_mlp", KOHYA, 12288, (3072,),
         ["single_transformer_blocks.0.proj_mlp"]),
        ("transformer.transformer_blocks.0.norm1.linear", PEFT, 18432, (3072,), ["transformer_blocks.0.norm1.linear"]),
    ],
)  # fmt: skip
def test_every_spelling_of_flux_s_names_is_understood(
    flux: Model, laid: Callable, name: str, ends: tuple[str, str], n: int, inner: tuple[int, ...], targets: list[str]
) -> None:
    adapter = laid(flux, name, ends, n, inner)
    assert set(adapter.pairs) == {("transformer", f"{t}.weight") for t in targets}
    pairs = [adapter.pairs["transformer", f"{t}.weight"] for t in targets]
    (own,) = adapter.file.pairs
    rows = np.concatenate([p.up for p in pairs])
    if "final_layer" in name:  # the halves for scale and shift change places, as in the model's own conversion
        rows = np.roll(rows, n // 2, axis=0)
    np.testing.assert_array_equal(rows, own.up)
    assert all(np.array_equal(p.down, own.down) for p in pairs)


@pytest.mark.parametrize(
    ("name", "ends", "n", "inner", "target"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", KOHYA, 64, (32,),
         ("text_encoder", "encoder.layers.0.mlp.fc1")),
        ("lora_te3_encoder_block_1_layer_0_SelfAttention_q", KOHYA, 32, (32,),  # kohya: CLIP-L, CLIP-G, T5
         ("text_encoder_2", "encoder.block.1.layer.0.SelfAttention.q")),
        ("lora_te2_encoder_block_0_layer_1_DenseReluDense_wi_0", KOHYA, 64, (32,),  # OneTrainer: as the pipeline counts
         ("text_encoder_2", "encoder.block.0.layer.1.DenseReluDense.wi_0")),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.1.DenseReluDense.wo", KOHYA, 32, (64,),
         ("text_encoder_2", "encoder.block.0.layer.1.DenseReluDense.wo")),
        ("t5xxl.encoder.block.0.layer.0.SelfAttention.o", PEFT, 32, (32,),
         ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.o")),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.1.self_attn.v_proj", KOHYA, 32, (32,),
         ("text_encoder", "encoder.layers.1.self_attn.v_proj")),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.k", PEFT, 32, (32,),
         ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.k")),
    ],
)  # fmt: skip
def test_every_spelling_of_flux_s_text_encoders_is_understood(
    flux: Model, laid: Callable, name: str, ends: tuple[str, str], n: int, inner: tuple[int, ...],
    target: tuple[str, str],
) -> None:  # fmt: skip
    ((module, weight),) = laid(flux, name, ends, n, inner).pairs
    assert (module, weight.removesuffix(".weight").removeprefix("text_model.")) == target


@pytest.mark.parametrize(
    "name", ["lora_te3_encoder_block_0_layer_0_SelfAttention_q", "t5xxl.encoder.block.0.layer.0.x"]
)
def test_a_text_encoder_that_the_pipeline_has_not_is_refused(sdxl: Model, laid: Callable, name: str) -> None:
    with pytest.raises(UserError, match=f"another architecture: none of its 1 layers, like '{name}'"):
        laid(sdxl, name, KOHYA, 32, (32,))


def test_a_layer_that_no_graph_reads_is_left_out_and_said(sdxl: Model, tmp_path: Path) -> None:
    arrays = {}
    for layer in (0, 1):
        name = f"lora_te1_text_model_encoder_layers_{layer}_self_attn_q_proj"
        arrays |= {f"{name}.lora_down.weight": np.ones((4, 32), np.float32)}
        arrays |= {f"{name}.lora_up.weight": np.ones((32, 4), np.float32)}
    save_file(arrays, tmp_path / "lora.safetensors")
    adapter = lay_over(read_file(tmp_path / "lora.safetensors"), sdxl)
    assert len(adapter.pairs) == 1
    assert adapter.unused == ("lora_te1_text_model_encoder_layers_1_self_attn_q_proj",)


def test_a_lora_for_flux_is_none_for_sdxl_and_the_other_way_round(flux: Model, sdxl: Model, laid: Callable) -> None:
    with pytest.raises(UserError, match="another architecture: none of its 1 layers, like 'lora_unet_double_blocks_0"):
        laid(sdxl, "lora_unet_double_blocks_0_img_attn_qkv", KOHYA, 9216, (3072,))
    with pytest.raises(UserError, match="another architecture"):
        laid(flux, f"unet.{DOWN}.attn1.to_q", PEFT, 640, (640,))
    with pytest.raises(UserError, match="trained on a model of another size"):
        laid(flux, "lora_unet_double_blocks_0_img_attn_proj", KOHYA, 1536, (1536,))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1.0),
        ({"transformer.lora_alpha": 8, "transformer.r": 4}, 2.0),
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 8 / math.sqrt(4)),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"x_embedder": 2}}, 0.5),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"norm": 2}}, 2.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_peft_s_settings_in_the_header_scale_a_lora(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    arrays = {
        "transformer.x_embedder.lora_A.weight": np.ones((4, 64), np.float32),
        "transformer.x_embedder.lora_B.weight": np.ones((192, 4), np.float32),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert read_file(tmp_path / "a.safetensors").pairs[0].scale == scale
