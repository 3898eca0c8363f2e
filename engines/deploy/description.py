"""What run.py must know of a pipeline, as data: which encoder feeds which input, how latents become an image."""

from __future__ import annotations

from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.deploy.pipelines import BY_CLASS, Pipeline
from engines.families import layout
from engines.instruction import KEYWORD, instruction
from engines.shapes import graph_inputs

# Keyword arguments of the pipeline's call that run.py carries out; any other is refused, not ignored.
KNOWN = {
    "num_inference_steps", "height", "width", "guidance_scale", "true_cfg_scale", "negative_prompt",
    "max_sequence_length", KEYWORD,
}  # fmt: skip
OFF = {"clean_caption", "use_resolution_binning"}  # run.py does neither
# Inputs that run.py makes itself.
MADE = {"hidden_states", "sample", "timestep", "img_ids", "txt_ids", "guidance", "time_ids"}
_SCALING = {"AutoencoderKL": 0.18215}  # where a config names no scaling_factor; all other classes: 1


def describe(artifact: Artifact, preset: str) -> dict[str, Any]:
    """The parts of a bundle's manifest that say how to draw, at the size that the artifact's generation names.

    Raises UserError for a pipeline, a setting or an input that run.py could not carry out.
    """
    manifest = artifact.manifest
    generation = dict(manifest["generation"])
    row = pipeline_row(artifact)
    _check_settings(generation)
    components = manifest["components"]
    denoiser, decoder = artifact.component("denoiser")[0], artifact.component("vae_decoder")[0]
    family = layout(components)
    inputs = {i.name for i in graph_inputs(artifact.tensorrt(denoiser, preset))}
    if strange := sorted(inputs - MADE - set(row.conditions)):
        raise UserError(f"The denoiser takes {', '.join(strange)}, which a bundle cannot give: use engines.run.")
    if "guidance" in inputs and (generation.get("true_cfg_scale") or 1.0) > 1:
        raise UserError("The model has embedded guidance and true_cfg_scale at once: a bundle does one of them.")
    empty = row.cls == "StableDiffusionXLPipeline" and generation.get("negative_prompt") is None
    settings = manifest.get("pipeline_config", {})
    return {
        "pipeline": row.cls,
        "denoiser": denoiser,
        "decoder": decoder,
        "conditions": _conditions(artifact, row),
        "text": text_rule(artifact),
        "zeros_for_no_negative": bool(empty and settings.get("force_zeros_for_empty_prompt", True)),
        "latents": {
            "channels": family.latents.channels,
            "scale": family.latents.scale,
            "packed": family.latents.packed,
        },
        "joined_guidance": family.joined_guidance,
        "guidance": family.guidance,
        "embedded_guidance": "guidance" in inputs,
        "rescaled_guidance": row.rescaled_guidance,
        "centred_positions": row.centred_positions,
        "decode": _decode(components[decoder], row.shifted),
        "generation": generation,
    }


def pipeline_row(artifact: Artifact) -> Pipeline:
    """The row of the artifact's pipeline. Raises UserError where there is none."""
    name = artifact.manifest["pipeline"]
    if name not in BY_CLASS:
        raise UserError(f"A bundle cannot run a {name} yet: draw with python -m engines.run.")
    return BY_CLASS[name]


def text_rule(artifact: Artifact) -> dict[str, Any]:
    """What the device does to a prompt before and behind its text encoders (device/text.py)."""
    row, manifest = pipeline_row(artifact), artifact.manifest
    dropped = max(manifest["components"][n].get("instruction_tokens", 0) for n in artifact.component("text_encoder"))
    plain = {"before": "", "after": "", "drop": [0, 0]}
    sides = {"prompt": plain, "negative": plain}
    if template := layout(manifest["components"]).template:
        before, after = _template(row.cls)
        sides = dict.fromkeys(sides, {"before": before, "after": after, "drop": [0, template]})
    elif dropped:  # the token that begins a text stays
        before = instruction(row.cls, manifest["generation"])
        sides["prompt"] = {"before": before, "after": "", "drop": [1, 1 + dropped]}
    return {"lowered": row.lowered, "masked": row.masked, **sides}


def _template(pipeline: str) -> tuple[str, str]:
    """What diffusers' pipeline writes before and after a prompt."""
    import inspect

    import diffusers

    cls = getattr(diffusers, pipeline)
    empty = cls(**dict.fromkeys(inspect.signature(cls).parameters))
    before, after = empty.prompt_template_encode.split("{}")
    return before, after


def _check_settings(generation: dict[str, Any]) -> None:
    """Raises UserError for a keyword argument of the pipeline's call that run.py does not carry out."""
    unknown = sorted(set(generation) - KNOWN - OFF)
    if unknown:
        raise UserError(
            f"A bundle cannot carry out {', '.join(unknown)} of the model's generation settings: build without it, or "
            "draw with python -m engines.run."
        )
    for setting in sorted(OFF & set(generation)):
        if generation[setting]:
            raise UserError(
                f"A bundle cannot carry out {setting} of the model's generation settings: put it into the model's "
                "generation.json as false and build again, or draw with python -m engines.run."
            )


def _conditions(artifact: Artifact, row: Pipeline) -> dict[str, list[Any]]:
    """The row's conditions; of an encoder that the artifact was built without (SD3's T5), rows of zeros."""
    there = set(artifact.component("text_encoder"))
    missing = int(artifact.manifest["generation"].get("max_sequence_length") or 0)
    return {
        name: [[list(source) for source in part] if {e for e, _ in part} <= there else missing for part in parts]
        for name, parts in row.conditions.items()
    }


def _decode(decoder: dict[str, Any], shifted: bool) -> dict[str, list[float]]:
    """Latents per channel (or one for all) before the decoder: scale · latents + shift."""
    config = decoder["config"]
    factor = config.get("scaling_factor") or _SCALING.get(decoder["class"], 1.0)
    if config.get("latents_mean") and config.get("latents_std"):
        return {"scale": [std / factor for std in config["latents_std"]], "shift": list(config["latents_mean"])}
    return {"scale": [1 / factor], "shift": [(config.get("shift_factor") or 0.0) if shifted else 0.0]}
