"""Qwen-Image: a dual-stream diffusion transformer on packed latents (arXiv 2508.02324)."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from artifact.positions import qwen_image_positions
from artifact.sampling import LatentRule
from export.families.row import Config, PipelineRow, Row, Shapes, random, text_mask


def _call(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_hidden_states_mask: torch.Tensor,
    timestep: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
) -> torch.Tensor:
    torch._check(encoder_hidden_states_mask.shape[0] == hidden_states.shape[0])
    torch._check(encoder_hidden_states.shape[0] == hidden_states.shape[0])
    torch._check(timestep.shape[0] == hidden_states.shape[0])
    torch._check(encoder_hidden_states_mask.shape[1] == encoder_hidden_states.shape[1])
    torch._check(img_ids.shape[0] == hidden_states.shape[1])
    torch._check(txt_ids.shape[0] == encoder_hidden_states.shape[1])
    inputs = (hidden_states, encoder_hidden_states)
    if not isinstance(self.pos_embed, _RotaryTable):  # diffusers' own module, that the graph is compared with
        sizes = _sizes(img_ids)
        return type(self).forward(
            self, *inputs, encoder_hidden_states_mask, timestep, img_shapes=sizes, return_dict=False
        )[0]
    # The forward makes a constant of a masked text's length; the mask reaches the attentions another way.
    return type(self).forward(
        self, *inputs, None, timestep, img_shapes=(img_ids, txt_ids),
        attention_kwargs={"text_mask": encoder_hidden_states_mask.bool()}, return_dict=False,
    )[0]  # fmt: skip


def _sizes(img_ids: torch.Tensor) -> list[list[tuple[int, int, int]]]:
    """What diffusers' own module is given instead: frames, rows and columns."""
    rows, columns = (len(img_ids[:, axis].unique()) for axis in (1, 2))
    return [[(1, rows, columns)]]


class _RotaryTable(torch.nn.Module):
    """Cosines and sines of positions, where diffusers has complex numbers, which ONNX has not."""

    def __init__(self, theta: int, axes: list[int]) -> None:
        super().__init__()
        self.axes = len(axes)
        for i, dim in enumerate(axes):
            frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
            self.register_buffer(f"frequencies_{i}", frequencies, persistent=False)

    def forward(self, ids: tuple[torch.Tensor, torch.Tensor], **_: Any) -> tuple[tuple[torch.Tensor, ...], ...]:
        """((cos, sin) of the image, (cos, sin) of the text), each [tokens, head dim / 2]."""
        angles = [
            torch.cat([part[:, i, None] * getattr(self, f"frequencies_{i}") for i in range(self.axes)], dim=-1)
            for part in ids
        ]
        return tuple((a.cos(), a.sin()) for a in angles)


def _rotated(x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """x [B, tokens, heads, D] turned by the table's angles: (a + bi)(cos + i sin), pairs (a, b) side by side."""
    cos, sin = (t[:, None] for t in table)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class _JointAttention:
    """diffusers' processor of both streams, its rotation in real numbers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: None,
        attention_mask: None,
        image_rotary_emb: Any,
        text_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = hidden_states, encoder_hidden_states
        tables = image_rotary_emb
        q = _heads(attn, (attn.to_q(image), attn.norm_q), (attn.add_q_proj(text), attn.norm_added_q), tables)
        k = _heads(attn, (attn.to_k(image), attn.norm_k), (attn.add_k_proj(text), attn.norm_added_k), tables)
        v = _heads(attn, (attn.to_v(image), None), (attn.add_v_proj(text), None), None)
        everywhere = torch.ones_like(image[..., 0], dtype=torch.bool)
        mask = torch.cat([text_mask, everywhere], dim=1)[:, None, None]
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).flatten(2)
        words = text.shape[1]
        return attn.to_out[0](y[:, words:]), attn.to_add_out(y[:, :words])


def _heads(attn: Any, image: tuple[torch.Tensor, Any], text: tuple[torch.Tensor, Any], tables: Any) -> torch.Tensor:
    """[B, heads, text + image tokens, D] of two streams, each normalised and, with tables, turned."""
    parts = []
    for i, (x, norm) in enumerate((image, text)):
        x = x.unflatten(-1, (attn.heads, -1))
        x = x if norm is None else norm(x)
        parts.append(x if tables is None else _rotated(x, tables[i]))
    return torch.cat(parts[::-1], dim=1).transpose(1, 2)


def _adapt(module: Any) -> None:
    module.pos_embed = _RotaryTable(module.pos_embed.theta, module.pos_embed.axes_dim)
    for block in module.transformer_blocks:
        block.attn.processor = _JointAttention()


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    rows, columns = shapes.height // 2, shapes.width // 2
    img_ids, txt_ids = map(torch.from_numpy, qwen_image_positions(rows, columns, shapes.sequence))
    kind: dict[str, Any] = {"dtype": dtype, "generator": generator}
    return {
        "hidden_states": random(shapes.batch, rows * columns, config["in_channels"], **kind),
        "encoder_hidden_states": random(shapes.batch, shapes.sequence, config["joint_attention_dim"], **kind),
        "encoder_hidden_states_mask": text_mask(shapes),
        "timestep": torch.tensor([0.25, 0.5, 0.75, 1.0])[torch.arange(shapes.batch) % 4],
        "img_ids": img_ids,
        "txt_ids": txt_ids,
    }


def _axes(config: Config) -> dict[str, tuple[str | None, ...]]:
    return {
        "hidden_states": ("batch", "tokens", None),
        "encoder_hidden_states": ("batch", "sequence", None),
        "encoder_hidden_states_mask": ("batch", "sequence"),
        "timestep": ("batch",),
        "img_ids": ("tokens", None),
        "txt_ids": ("sequence", None),
        "out_sample": ("batch", "tokens", None),
    }


def _refuse(config: Config) -> str | None:
    """What Qwen-Image-Edit and -Layered add."""
    for key in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        if config.get(key):
            return f"{key} {config[key]!r} (Qwen-Image has none)"
    return None


def _latents(config_of: Any) -> LatentRule:
    scale = 2 ** len(config_of("vae")["temperal_downsample"])
    return LatentRule(config_of("transformer")["in_channels"] // 4, scale, True)


def _generation(config_of: Any) -> dict[str, Any]:
    size = 128 * _latents(config_of).scale
    return {
        "height": size, "width": size, "num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": " ",
        "max_sequence_length": 512,
    }  # fmt: skip


ROWS = (
    Row(
        cls="QwenImageTransformer2DModel",
        role="denoiser",
        component="{module}",
        build=lambda config: diffusers.QwenImageTransformer2DModel.from_config(config),
        load=diffusers.QwenImageTransformer2DModel.from_pretrained,
        call=lambda config: _call,
        adapt=_adapt,
        inputs=_inputs,
        axes=_axes,
        outputs=("out_sample",),
        quantise=(
            "transformer_blocks.*.attn.*",
            "transformer_blocks.*.img_mlp.net.*",
            "transformer_blocks.*.txt_mlp.net.*",
        ),
        weight_only=("transformer_blocks.*.img_mod.1", "transformer_blocks.*.txt_mod.1"),
        keep=("img_in", "txt_in", "time_text_embed.*", "norm_out.linear", "proj_out"),
        refuse=_refuse,
    ),
)

# Its text encoder and autoencoder were trained in bfloat16, as SANA's (sana.py); so was the transformer, whose blocks
# cut their streams to float16's range, in diffusers and in the graph.
PIPELINES = (PipelineRow("QwenImagePipeline", _latents, _generation, lambda config_of: ("text_encoder", "vae")),)
