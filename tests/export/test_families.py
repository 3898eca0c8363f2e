"""Every family: its graphs equal torch, its denoiser becomes 4-bit and runs, and TensorRT's parser takes both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import diffusers
import numpy as np
import onnx_ir as ir
import pytest
import torch

import engines
from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.pictures import any_pictures, read_pictures
from artifact.sampling import initial_noise, sample
from artifact.store import Store
from engines.shapes import input_shapes
from export.check import check_against_torch
from export.components import components, latent_rule, picture_rule
from export.fake_module import fake_module
from export.families import MODULES, pipeline_row
from export.families.linear_attention import linear_attention
from export.families.positions import float32_positions
from export.graph import write_graph
from export.graph_cache import prepared
from export.pipeline import load_pipeline
from export.source import Source, open_source
from passes.policy import WEIGHT_ONLY, Policy
from passes.presets import PRESETS, plugin_form
from passes.verify_tensorrt import is_plugin, objection
from passes.write import write_model
from tests.export import models
from tests.export.families import Graph, artifact_of, layers_of, policy_of, relative, run, solved_layers

MODELS: dict[str, Callable[[Path], Path]] = {
    "sd21": models.stable_diffusion_21,
    "sdxl_turbo": models.stable_diffusion_xl_turbo,
    "sd3": models.stable_diffusion_3,
    "pixart": models.pixart,
    "sana": models.sana,
    "fill": models.flux_fill,
    "control": models.flux_control,
    "qwen": models.qwen_image,
}
DENOISERS = [
    ("sd21", "unet"), ("fill", "transformer"), ("control", "transformer"), ("sd3", "transformer"),
    ("pixart", "transformer"), ("sana", "transformer"), ("qwen", "transformer"),
]  # fmt: skip
OTHERS = [
    ("sd21", "text_encoder"), ("pixart", "text_encoder"), ("sana", "text_encoder"), ("qwen", "text_encoder"),
    ("sana", "vae_decoder"), ("sana", "vae_encoder"), ("qwen", "vae_decoder"), ("qwen", "vae_encoder"),
]  # fmt: skip
FOUR_BIT = [*DENOISERS, ("sdxl_turbo", "unet")]  # SDXL's graphs are compared with torch in test_check.py
KNOWN = ("sd21", "fill", "control")  # of classes whose float32 graphs test_check.py compares

# The layers of every block that are quantised; modulations by weight alone.
_CROSS = "attn1.to_qkv attn1.to_out.0 attn2.to_q attn2.to_out.0"
_JOINT = "attn.to_qkv attn.add_qkv_proj attn.to_out.0"
LAYERS = {
    "sd3": [
        f"{_JOINT} attn.to_add_out attn2.to_qkv attn2.to_out.0 ff.net.0.proj ff.net.2 ff_context.net.0.proj "
        "ff_context.net.2 norm1.linear norm1_context.linear",
        f"{_JOINT} ff.net.0.proj ff.net.2 norm1.linear norm1_context.linear",
    ],
    "pixart": [f"{_CROSS} ff.net.0.proj ff.net.2"],
    "sana": [f"{_CROSS} ff.conv_inverted ff.conv_point"],
    "qwen": [
        f"{_JOINT} attn.to_add_out img_mlp.net.0.proj img_mlp.net.2 txt_mlp.net.0.proj txt_mlp.net.2 img_mod.1 "
        "txt_mod.1",
        f"{_JOINT} img_mlp.net.0.proj img_mlp.net.2 img_mod.1 txt_mod.1",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """The tiny model of a name, saved once."""

    @cache
    def get(name: str) -> Source:
        return open_source(str(MODELS[name](tmp_path_factory.mktemp("families") / name)))

    return get


@pytest.fixture(scope="module")
def family(source: Callable[[str], Source], store: Store) -> Graph:
    """(model, component, dtype) → (source, component, graph)."""

    def get(name: str, part: str, dtype: str = "float32"):
        component = next(c for c in components(source(name)) if c.name == part)
        component = replace(component, float32=False)  # tested in float16, too, where a build keeps float32
        return source(name), component, prepared(source(name), component, dtype, store)

    return get


@pytest.mark.parametrize(
    ("name", "part", "dtype"),
    [
        *((*graph, "float16") for graph in DENOISERS + OTHERS),
        *((*graph, "float32") for graph in DENOISERS + OTHERS if graph[0] not in KNOWN),
    ],
)
def test_the_graph_equals_torch_at_other_sizes_and_batches(
    family: Graph, tmp_path: Path, name: str, part: str, dtype: str
) -> None:
    source, component, model = family(name, part, dtype)
    write_graph(model, tmp_path / "model.onnx")
    rows = check_against_torch(tmp_path / "model.onnx", source, component, dtype)
    assert len({str(r["shapes"]) for r in rows}) == 2
    assert max(r["relative"] for r in rows) <= {"float32": 1e-4, "float16": 5e-3}[component.dtype(dtype)]
    assert max(r["max_abs"] for r in rows) > 0.05
    assert objection(model) is None


@pytest.mark.parametrize(("name", "part"), FOUR_BIT)
def test_the_denoiser_becomes_four_bit_and_runs_at_other_sizes(
    family: Graph, tmp_path: Path, name: str, part: str
) -> None:
    source, component, model = family(name, part, "float16")
    layers = layers_of(component, model)
    solved = solved_layers(source, component, layers, "float16")
    PRESETS["fp16"].apply(baseline := model.clone(), Policy(), {})
    write_model(baseline, tmp_path / "fp16.onnx")
    portable = PRESETS["svdq-int4"].apply(model.clone(), policy_of(component), solved)
    write_model(portable, tmp_path / "svdq-int4.onnx")
    for number in range(len(component.row.check_shapes)):
        found, expected = (run(tmp_path / f"{p}.onnx", component, number, "float16") for p in ("svdq-int4", "fp16"))
        assert np.isfinite(found).all() and found.shape == expected.shape
        assert 1e-4 < relative(found, expected) < 0.35
    lowered = plugin_form(at_least=len(layers))(portable.clone()).model  # refuses what TensorRT does not parse
    assert {str(n.name) for n in lowered.graph if is_plugin(n)} == {layer.name for layer in layers}


@pytest.mark.parametrize("name", LAYERS)
def test_exactly_these_layers_are_quantised(family: Graph, name: str) -> None:
    _, component, model = family(name, "transformer", "float16")
    layers = {layer.name: layer for layer in layers_of(component, model)}
    expected = {f"transformer_blocks.{i}.{n}" for i, block in enumerate(LAYERS[name]) for n in block.split()}
    assert set(layers) == expected
    alone = {n for n, layer in layers.items() if layer.scheme == WEIGHT_ONLY}
    assert alone == {n for n in expected if ".norm1" in n or "_mod." in n}


@pytest.mark.parametrize(("name", "part"), FOUR_BIT)
def test_every_linear_is_named_by_one_list_only(source: Callable[[str], Source], name: str, part: str) -> None:
    component = next(c for c in components(source(name)) if c.name == part)
    module, _ = fake_module(component, "float16")
    globs = {kind: getattr(component.row, kind) for kind in ("quantise", "weight_only", "keep")}
    for linear, child in module.named_modules():
        if isinstance(child, torch.nn.Linear):
            lists = [kind for kind in globs if any(fnmatchcase(linear, g) for g in globs[kind])]
            assert len(lists) == 1, (linear, lists)


@pytest.mark.parametrize("name", ["sd3", "pixart", "sana", "qwen"])
def test_the_family_s_pipeline_on_engines_equals_torch_step_by_step(family: Graph, tmp_path: Path, name: str) -> None:
    source, _, _ = family(name, "transformer")
    graphs = [family(name, part.name)[1:] for part in components(source) if part.role != "vae_encoder"]
    artifact = artifact_of(tmp_path / "artifact", source, graphs)
    prompts = ["a large red circle", "a small blue square above a green cross"]
    noise = initial_noise(latent_rule(source), [1, 2], 32, 32)
    expected = sample(load_pipeline(source), prompts, noise, source.generation)
    with engines.load(artifact) as pipe:
        assert pipe.layout.latents == latent_rule(source)
        found = sample(pipe.diffusers(), prompts, noise, source.generation)
        other = sample(pipe.diffusers(), prompts[::-1], noise, source.generation)
    assert expected.latents.shape[1] == 3 and expected.latents.std() > 0.1
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=2e-4)
    assert np.abs(found.images.astype(int) - expected.images).max() <= 1
    assert np.abs(found.latents - other.latents).max() > 1e-3  # the text counts


@pytest.mark.parametrize("name", ["fill", "control"])
def test_a_pipeline_that_draws_from_pictures_does_so_on_engines_as_on_torch(
    family: Graph, tmp_path: Path, name: str
) -> None:
    source, _, _ = family(name, "transformer")
    graphs = [family(name, part.name)[1:] for part in components(source)]
    artifact = artifact_of(tmp_path / "artifact", source, graphs)
    prompts = ["a large red circle", "a small blue square above a green cross"]
    rule, noise = picture_rule(source), initial_noise(latent_rule(source), [1, 2], 32, 32)
    assert rule is not None and (rule.mask is not None) == (name == "fill")
    given = read_pictures(models.pictures(tmp_path / "given", 2), rule, 2, 32, 32)
    expected = sample(load_pipeline(source), prompts, noise, source.generation, pictures=given)
    with engines.load(artifact) as pipe:
        assert type(pipe.diffusers()).__name__ == source.pipeline and pipe.layout.latents == latent_rule(source)
        found, other, grey = (
            sample(pipe.diffusers(), prompts, noise, source.generation, pictures=p)
            for p in (given, replace(given, images=given.images[::-1]), any_pictures(rule, 2, 32, 32))
        )
    assert expected.latents.shape == (2, 3, 64, 16) and expected.latents.std() > 0.1
    np.testing.assert_allclose(found.latents, expected.latents, rtol=0, atol=2e-4)
    assert np.abs(found.images.astype(int) - expected.images).max() <= 1
    assert np.abs(found.latents - other.latents).max() > 1e-3 < np.abs(found.latents - grey.latents).max()


def test_turbo_is_known_by_its_scheduler_and_draws_the_same_noise_at_every_call(
    source: Callable[[str], Source],
) -> None:
    turbo = source("sdxl_turbo")
    assert turbo.generation["num_inference_steps"] == 4 and turbo.generation["guidance_scale"] == 0.0
    prompts = ["a large red circle", "a small blue square"]
    noise = initial_noise(latent_rule(turbo), [1, 2], 32, 32)
    pipe = load_pipeline(turbo)
    one, two = (sample(pipe, prompts, noise, turbo.generation).latents for _ in range(2))
    alone = sample(pipe, prompts[1:], noise[1:], turbo.generation).latents
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(alone[0], one[1], rtol=0, atol=1e-4 * one.std())


@pytest.mark.parametrize(("name", "tokens", "width"), [("sd3", 16 + 12, 96), ("pixart", 12, 32), ("sana", 12, 32)])
def test_the_denoiser_reads_as_many_tokens_as_its_pipeline_gives(
    family: Graph, tmp_path: Path, name: str, tokens: int, width: int
) -> None:
    source, _, _ = family(name, "transformer")
    graphs = [family(name, part.name)[1:] for part in components(source) if part.role != "vae_encoder"]
    artifact = Artifact.open(artifact_of(tmp_path / "artifact", source, graphs))
    shapes = input_shapes(artifact, "transformer", artifact.model("transformer", "fp16"))
    assert shapes["hidden_states"] == (2, 4, 32 // latent_rule(source).scale, 32 // latent_rule(source).scale)
    assert shapes["encoder_hidden_states"] == (2, tokens, width)


def test_positions_of_pixart_are_torch_s_at_every_size() -> None:
    embed = diffusers.PixArtTransformer2DModel(**models.PIXART | {"interpolation_scale": 2.0}).pos_embed
    sizes = [(16, 16), (8, 24), (32, 12)]  # the first is the one that torch holds a table of
    latents = [torch.randn(1, 4, *size) for size in sizes]
    with torch.no_grad():
        expected = [embed(x) for x in latents]
        float32_positions(embed)
        for x, y in zip(latents, expected, strict=True):
            torch.testing.assert_close(embed(x), y, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "part"), [("sana", "transformer"), ("sana", "vae_decoder")])
def test_pixels_without_any_feature_are_zero_in_linear_attention(family: Graph, name: str, part: str) -> None:
    q = torch.rand(2, 3, 8, 10)
    q[..., 4] = 0
    y = linear_attention(q, torch.rand(2, 3, 8, 10), torch.randn(2, 3, 8, 10))
    assert torch.isfinite(y).all() and (y[..., 4] == 0).all() and (y[..., 3] != 0).all()
    _, _, model = family(name, part)  # and what keeps it so is still in the graph after simplifying
    least = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None
             and v.const_value.size == 1 and v.dtype == ir.DataType.FLOAT]  # fmt: skip
    assert any(np.isclose(value, 1e-15, rtol=1e-3, atol=0).all() for value in least)


def test_a_pipeline_that_cannot_be_compiled_says_why() -> None:
    with pytest.raises(UserError, match="ZImagePipeline cannot be compiled: .*complex numbers.*Known are Flux"):
        pipeline_row("ZImagePipeline")


@pytest.mark.parametrize(
    ("name", "cls", "given"),
    [("fill", "FluxPipeline", 16), ("fill", "FluxControlPipeline", 32), ("control", "FluxFillPipeline", 48)],
)
def test_a_transformer_of_another_width_than_its_pipeline_s_is_refused(
    source: Callable[[str], Source], name: str, cls: str, given: int
) -> None:
    found = source(name)
    width = {"fill": 48, "control": 32}[name]
    with pytest.raises(UserError, match=f"no {cls}: .* reads {width} channels a token where .* gives {given}"):
        components(replace(found, index=found.index | {"_class_name": cls}))


def test_what_a_family_s_sisters_add_is_refused() -> None:
    def refused(cls: str, **config: object) -> str:
        return MODULES[cls][0].refuse(config) or ""

    assert "PixArt-α" in refused("PixArtTransformer2DModel", sample_size=128)
    assert not refused("PixArtTransformer2DModel", sample_size=128, use_additional_conditions=False)
    assert "SANA-Sprint" in refused("SanaTransformer2DModel", guidance_embeds=True)
    assert "zero_cond_t True" in refused("QwenImageTransformer2DModel", zero_cond_t=True)
