"""What a diffusers pipeline class does around its modules that run.py must do, too: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# (text encoder, its output) pairs whose last axes are joined. "attention_mask" is the mask of the padding itself.
Part = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pipeline:
    """`conditions`: parts of each denoiser input that the text gives; several parts follow one another as rows, the
    narrower ones padded with zeros to the input's width.

    `masked`: text encoders are told which tokens are padding; the others attend to it, as they were trained.
    `lowered`: prompts are stripped and put in lower case. `padded`: prompts are padded to one length, on
    `padding_side` whatever the tokenizer's own side (None: that).
    `own_sigmas`: it gives the scheduler its sigmas and a shift by the image's tokens, and the denoiser the timestep
    divided by 1000. `shifts`: it gives a scheduler with dynamic shifting that shift alone.
    `settings`: what it overrules in a scheduler's config, where the config has it.
    `shifted`: the decoder's latents are shifted by its `shift_factor` after scaling.
    `centred_positions`: image and text count positions from the image's middle (artifact/positions.py).
    `rescaled_guidance`: a guided prediction gets the norm back that the prompt's own has, token by token.
    """

    cls: str
    conditions: Mapping[str, tuple[Part, ...]]
    masked: bool = False
    lowered: bool = False
    padded: bool = True
    padding_side: str | None = None
    own_sigmas: bool = False
    shifts: bool = False
    settings: Mapping[str, int | bool] = field(default_factory=dict)
    shifted: bool = False
    centred_positions: bool = False
    rescaled_guidance: bool = False


def _one(encoder: str, output: str) -> tuple[Part, ...]:
    return (((encoder, output),),)


_LAST = _one("text_encoder", "last_hidden_state")
_CLIPS: Part = (("text_encoder", "penultimate_hidden_state"), ("text_encoder_2", "penultimate_hidden_state"))
_MASKED = {"encoder_hidden_states": _LAST, "encoder_attention_mask": _one("text_encoder", "attention_mask")}

PIPELINES = (
    Pipeline(
        "FluxPipeline",
        {
            "encoder_hidden_states": _one("text_encoder_2", "last_hidden_state"),
            "pooled_projections": _one("text_encoder", "pooler_output"),
        },
        own_sigmas=True,
        shifted=True,
    ),
    Pipeline(
        "StableDiffusionPipeline",
        {"encoder_hidden_states": _LAST},
        settings={"steps_offset": 1, "clip_sample": False},  # with a warning, whatever the file says
    ),
    Pipeline(
        "StableDiffusionXLPipeline",
        {"encoder_hidden_states": (_CLIPS,), "text_embeds": _one("text_encoder_2", "text_embeds")},
    ),
    Pipeline(
        "StableDiffusion3Pipeline",
        {
            "encoder_hidden_states": (_CLIPS, (("text_encoder_3", "last_hidden_state"),)),
            "pooled_projections": ((("text_encoder", "text_embeds"), ("text_encoder_2", "text_embeds")),),
        },
        shifts=True,
        shifted=True,
    ),
    Pipeline("PixArtSigmaPipeline", _MASKED, masked=True, lowered=True),
    Pipeline("SanaPipeline", _MASKED, masked=True, lowered=True, padding_side="right"),
    Pipeline(
        "QwenImagePipeline",
        {
            "encoder_hidden_states": _LAST,
            "encoder_hidden_states_mask": _one("text_encoder", "attention_mask"),
        },
        masked=True,
        padded=False,
        own_sigmas=True,
        centred_positions=True,
        rescaled_guidance=True,
    ),
)
BY_CLASS = {p.cls: p for p in PIPELINES}
