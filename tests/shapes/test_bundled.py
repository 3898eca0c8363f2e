"""The bundled checkpoints: small, plain, of the promised widths, and able to draw what they are asked."""

import inspect
import json

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionPipeline
from safetensors import safe_open
from torch import nn

from bench.prompt_score import BUNDLED, generate
from engines import checker

PIPELINES = {"shapes-dit": FluxPipeline, "shapes-unet": StableDiffusionPipeline}
models = pytest.mark.parametrize("model", PIPELINES)


@pytest.fixture(scope="module")
def loaded():
    return {model: DiffusionPipeline.from_pretrained(BUNDLED / model) for model in PIPELINES}


def files(model):
    return [p for p in (BUNDLED / model).rglob("*") if p.is_file()]


@models
def test_it_takes_at_most_12_megabytes(model):
    assert sum(p.stat().st_size for p in files(model)) <= 12_000_000


@models
def test_it_holds_data_only(model):
    assert {p.suffix for p in files(model)} <= {".json", ".safetensors", ".txt"}


@models
def test_its_weights_are_float16(model):
    for path in (p for p in files(model) if p.suffix == ".safetensors"):
        with safe_open(path, "pt") as weights:
            names = weights.keys()
            assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}, path


@models
def test_it_loads_as_the_plain_diffusers_pipeline(model, loaded):
    assert type(loaded[model]) is PIPELINES[model]
    assert getattr(loaded[model], "safety_checker", None) is None
    dtypes = {
        p.dtype for part in loaded[model].components.values() if isinstance(part, nn.Module) for p in part.parameters()
    }
    assert dtypes == {torch.float32}


@models
def test_every_linear_width_is_a_multiple_of_64(model, loaded):
    parts = (part for part in loaded[model].components.values() if isinstance(part, nn.Module))
    for part in parts:
        if type(part).__name__ == "AutoencoderKL":
            continue
        for name, layer in part.named_modules():
            if isinstance(layer, nn.Linear):
                assert layer.in_features % 64 == 0 and layer.out_features % 64 == 0, (name, layer)


@models
def test_its_generation_settings_are_arguments_of_its_call(model, loaded):
    settings = json.loads((BUNDLED / model / "generation.json").read_text())
    assert settings["height"] == settings["width"] == 64
    assert settings.keys() <= inspect.signature(type(loaded[model]).__call__).parameters.keys()


@models
def test_it_draws_three_quarters_of_24_held_out_prompts_right(model):
    captions = (BUNDLED / "prompts" / "heldout-500.txt").read_text().splitlines()[:24]
    pictures = generate(BUNDLED / model, captions, torch.float32, seed=0)
    assert checker.score(pictures, captions)["right"] >= 0.75
