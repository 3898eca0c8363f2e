"""What run.py must know of a pipeline, as data: which encoder feeds which input, how latents become an image."""

from __future__ import annotations

from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.families import layout
from engines.shapes import graph_inputs

# Keyword arguments of the pipeline's call that run.py carries out; any other is refused, not ignored.
KNOWN = {
    "num_inference_steps", "height", "width", "guidance_scale", "true_cfg_scale", "negative_prompt",
    "max_sequence_length",
}  # fmt: skip
# Denoiser input: [(text encoder, its output)] whose last axes are joined, by the pipeline's class.
CONDITIONS = {
    "FluxPipeline": {
        "encoder_hidden_states": [("text_encoder_2", "last_hidden_state")],
        "pooled_projections": [("text_encoder", "pooler_output")],
    },
    "StableDiffusionPipeline": {"encoder_hidden_states": [("text_encoder", "last_hidden_state")]},
    "StableDiffusionXLPipeline": {
        "encoder_hidden_states": [
            ("text_encoder", "penultimate_hidden_state"),
            ("text_encoder_2", "penultimate_hidden_state"),
        ],
        "text_embeds": [("text_encoder_2", "text_embeds")],
    },
}
# Inputs that run.py makes itself.
MADE = {"hidden_states", "sample", "timestep", "img_ids", "txt_ids", "guidance", "time_ids"}


def describe(artifact: Artifact, preset: str) -> dict[str, Any]:
    """The parts of a bundle's manifest that say how to draw, at the size that the artifact's generation names.

    Raises UserError for a pipeline, a setting or an input that run.py could not carry out.
    """
    manifest = artifact.manifest
    generation, pipeline = dict(manifest["generation"]), manifest["pipeline"]
    if pipeline not in CONDITIONS:
        raise UserError(f"A bundle cannot run a {pipeline} yet: draw with python -m engines.run.")
    unknown = sorted(set(generation) - KNOWN)
    if unknown:
        raise UserError(
            f"A bundle cannot carry out {', '.join(unknown)} of the model's generation settings: build without it, or "
            "draw with python -m engines.run."
        )
    components = manifest["components"]
    denoiser = artifact.component("denoiser")[0]
    family = layout(components)
    inputs = {i.name for i in graph_inputs(artifact.tensorrt(denoiser, preset))}
    if strange := sorted(inputs - MADE - set(CONDITIONS[pipeline])):
        raise UserError(f"The denoiser takes {', '.join(strange)}, which a bundle cannot give: use engines.run.")
    if "guidance" in inputs and generation.get("true_cfg_scale", 1.0) > 1:
        raise UserError("The model has embedded guidance and true_cfg_scale at once: a bundle does one of them.")
    empty = pipeline == "StableDiffusionXLPipeline" and "negative_prompt" not in generation
    settings = manifest.get("pipeline_config", {})
    return {
        "pipeline": pipeline,
        "denoiser": denoiser,
        "decoder": artifact.component("vae_decoder")[0],
        "conditions": {k: [list(s) for s in v] for k, v in CONDITIONS[pipeline].items()},
        "zeros_for_no_negative": bool(empty and settings.get("force_zeros_for_empty_prompt", True)),
        "latents": {
            "channels": family.latents.channels,
            "scale": family.latents.scale,
            "packed": family.latents.packed,
        },
        "joined_guidance": family.joined_guidance,
        "guidance": family.guidance,
        "embedded_guidance": "guidance" in inputs,
        "decode": _decode(components[artifact.component("vae_decoder")[0]]["config"], family.latents.packed),
        "generation": generation,
    }


def _decode(config: dict[str, Any], packed: bool) -> dict[str, list[float]]:
    """Latents per channel (or one for all) before the decoder: scale · latents + shift."""
    factor = config.get("scaling_factor", 0.18215)
    if config.get("latents_mean") and config.get("latents_std"):
        return {"scale": [std / factor for std in config["latents_std"]], "shift": list(config["latents_mean"])}
    return {"scale": [1 / factor], "shift": [(config.get("shift_factor") or 0.0) if packed else 0.0]}
