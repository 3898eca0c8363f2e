"""FLUX.1: the dual-stream and single-stream diffusion transformer (arXiv 2403.03206, black-forest-labs/flux).

Fill, Canny and Depth have the same blocks and read a picture beside the noise: their `x_embedder` is wider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from artifact.pictures import PictureRule
from artifact.sampling import LatentRule
from export.families.row import Config, PipelineRow, Row, Shapes, random


def _call(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
    timestep: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
) -> torch.Tensor:
    return type(self).forward(
        self, hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, return_dict=False
    )[0]


def _call_guided(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
    timestep: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
    guidance: torch.Tensor,
) -> torch.Tensor:
    return type(self).forward(
        self, hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, guidance,
        return_dict=False,
    )[0]  # fmt: skip


def _inputs(config: Config, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, torch.Tensor]:
    rows, columns = shapes.height // 2, shapes.width // 2
    img_ids = torch.zeros(rows, columns, 3)
    img_ids[..., 1] += torch.arange(rows)[:, None]
    img_ids[..., 2] += torch.arange(columns)[None]
    kind: dict[str, Any] = {"dtype": dtype, "generator": generator}
    # Timesteps whose thousandfold float16 holds exactly: the module multiplies after rounding to its own dtype.
    inputs = {
        "hidden_states": random(shapes.batch, rows * columns, config["in_channels"], **kind),
        "encoder_hidden_states": random(shapes.batch, shapes.sequence, config["joint_attention_dim"], **kind),
        "pooled_projections": random(shapes.batch, config["pooled_projection_dim"], **kind),
        "timestep": torch.tensor([0.25, 0.5, 0.75, 1.0])[torch.arange(shapes.batch) % 4],
        "img_ids": img_ids.reshape(-1, 3),
        "txt_ids": torch.zeros(shapes.sequence, 3),
    }
    return inputs | ({"guidance": torch.full((shapes.batch,), 3.5)} if config.get("guidance_embeds") else {})


def _axes(config: Config) -> dict[str, tuple[str | None, ...]]:
    axes: dict[str, tuple[str | None, ...]] = {
        "hidden_states": ("batch", "tokens", None),
        "encoder_hidden_states": ("batch", "sequence", None),
        "pooled_projections": ("batch", None),
        "timestep": ("batch",),
        "img_ids": ("tokens", None),
        "txt_ids": ("sequence", None),
        "out_sample": ("batch", "tokens", None),
    }
    return axes | ({"guidance": ("batch",)} if config.get("guidance_embeds") else {})


class _RotaryTable(torch.nn.Module):
    """FLUX's rotary angles in float32: the frequencies are rounded once from float64, TensorRT has no float64."""

    def __init__(self, theta: int, axes: tuple[int, ...]) -> None:
        super().__init__()
        for i, dim in enumerate(axes):
            frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            self.register_buffer(f"frequencies_{i}", frequencies.float(), persistent=False)
        self.axes = len(axes)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, axes] positions → cosines and sines, each [tokens, head dim] with every angle twice in a row."""
        angles = torch.cat([ids[:, i, None] * getattr(self, f"frequencies_{i}") for i in range(self.axes)], dim=-1)
        twice = [torch.stack((t, t), dim=-1).flatten(-2) for t in (angles.cos(), angles.sin())]
        return twice[0], twice[1]


def _adapt(module: Any) -> None:
    module.pos_embed = _RotaryTable(module.pos_embed.theta, tuple(module.pos_embed.axes_dim))


def _latents(config_of: Any) -> LatentRule:
    # The noise has the VAE's channels; in_channels counts what is read beside it, too.
    vae = config_of("vae")
    return LatentRule(vae["latent_channels"], 2 ** (len(vae["block_out_channels"]) - 1), True)


def _generation(config_of: Any) -> dict[str, Any]:
    guided = config_of("transformer").get("guidance_embeds")  # dev; schnell is distilled to few steps and no guidance
    return {
        "height": 1024, "width": 1024, "num_inference_steps": 28 if guided else 4,
        "guidance_scale": 3.5 if guided else 0.0, "max_sequence_length": 512 if guided else 256,
    }  # fmt: skip


def _strongly_guided(config_of: Any) -> dict[str, Any]:
    """diffusers' example calls of Fill and Canny; of Depth, whose configs are Canny's, docs/families.md speaks."""
    return _generation(config_of) | {"num_inference_steps": 50, "guidance_scale": 30.0, "max_sequence_length": 512}


def _reads(pictures: int, mask: bool) -> Callable[[Any], str | None]:
    """A refusal of transformers that do not read the noise, so many `pictures` and, with `mask`, a mask's pixels."""

    def refuse(config_of: Any) -> str | None:
        rule, found = _latents(config_of), config_of("transformer")["in_channels"]
        cells = rule.channels * (1 + pictures) + (rule.scale**2 if mask else 0)
        if found == 4 * cells:  # a token is 2 x 2 cells
            return None
        return f"its transformer reads {found} channels a token where that pipeline gives {4 * cells}"

    return refuse


ROWS = (
    Row(
        cls="FluxTransformer2DModel",
        role="denoiser",
        component="{module}",
        build=lambda config: diffusers.FluxTransformer2DModel.from_config(config),
        load=diffusers.FluxTransformer2DModel.from_pretrained,
        call=lambda config: _call_guided if config.get("guidance_embeds") else _call,
        adapt=_adapt,
        inputs=_inputs,
        axes=_axes,
        outputs=("out_sample",),
        quantise=(
            "*transformer_blocks.*.attn.*",
            "transformer_blocks.*.ff.net.*",
            "transformer_blocks.*.ff_context.net.*",
            "single_transformer_blocks.*.proj_mlp",
            "single_transformer_blocks.*.proj_out",
        ),
        weight_only=("transformer_blocks.*.norm1*.linear", "single_transformer_blocks.*.norm.linear"),
        keep=("x_embedder", "context_embedder", "time_text_embed.*", "norm_out.linear", "proj_out"),
    ),
)

_FILL = PictureRule("image", "mask_image")
_CONTROL = PictureRule("control_image")

PIPELINES = (
    PipelineRow("FluxPipeline", _latents, _generation, refuse=_reads(0, mask=False)),
    PipelineRow("FluxFillPipeline", _latents, _strongly_guided, pictures=_FILL, refuse=_reads(1, mask=True)),
    PipelineRow("FluxControlPipeline", _latents, _strongly_guided, pictures=_CONTROL, refuse=_reads(1, mask=False)),
)
