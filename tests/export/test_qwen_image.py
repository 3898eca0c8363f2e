"""What Qwen-Image alone needs: kernels of one frame, text of any length, positions that its pipeline does not give."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import diffusers
import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from PIL import Image

import engines
from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.store import Store
from engines.deploy.bundle import write_bundle
from engines.metrics import mean_squared_error, psnr_db
from engines.targets import find
from engines.trt.profiles import Profile, profile
from export.components import Component, components
from export.fake_module import fake_module
from export.families import MODULES, pipeline_row
from export.graph_cache import prepared
from export.pipeline import load_pipeline
from export.source import Source, open_source
from export.weights import bind_weights
from tests.compile.commands import SMALL, build
from tests.engines.deploy.jetson import compile_libcuda, place
from tests.export import models
from tests.export.families import artifact_of


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(models.qwen_image(tmp_path_factory.mktemp("qwen") / "qwen")))


@pytest.fixture(scope="module")
def graphs(qwen: Source, store: Store) -> list[tuple[Component, ir.Model]]:
    """Every component as a build in float32 has it."""
    return [(part, prepared(qwen, part, "float32", store)) for part in components(qwen)]


def test_it_wants_the_family_s_own_call_where_the_model_brings_none(qwen: Source) -> None:
    call = pipeline_row("QwenImagePipeline").generation(qwen.config)
    assert (call["num_inference_steps"], call["true_cfg_scale"], call["negative_prompt"]) == (50, 4.0, " ")
    full = {"vae": {"temperal_downsample": [False, True, True]}, "transformer": {"in_channels": 64}}
    row = pipeline_row("QwenImagePipeline")
    assert row.latents(full.__getitem__).shape(1024, 512) == (64 * 32, 64)
    assert row.generation(full.__getitem__)["height"] == row.generation(full.__getitem__)["width"] == 1024


def test_of_kernels_over_frames_the_last_tap_is_read(qwen: Source, graphs: list[tuple[Component, ir.Model]]) -> None:
    part, model = next((part, model) for part, model in graphs if part.role == "vae_decoder")
    module, _ = fake_module(part, "float32")
    files, values = qwen.weights("vae"), model.graph.initializers
    for name, parameter in module.named_parameters():
        over_frames = any(fnmatchcase(name, glob) for glob in part.row.last_frame)
        assert len(files[name].shape) == parameter.ndim + over_frames, name
        stored = files[name].read()
        np.testing.assert_array_equal(
            values[name].const_value.numpy(), stored[..., -1, :, :] if over_frames else stored
        )
    assert files["decoder.mid_block.resnets.0.conv1.weight"].shape[2] == 3
    assert not any("time_conv" in name for name in values)  # changes of the frame rate pass a first frame by


def test_a_kernel_of_another_size_is_refused_in_numbers(qwen: Source, graphs: list[tuple[Component, ir.Model]]) -> None:
    part, model = next((part, model) for part, model in graphs if part.role == "vae_decoder")
    model = model.clone()
    model.graph.initializers["decoder.conv_in.weight"].shape = ir.Shape([16, 4, 5, 5])
    with pytest.raises(UserError, match=r"\[16, 4, 3, 3, 3\], .* has \[16, 4, 5, 5\] in each frame"):
        bind_weights(model, qwen, part)


def test_qwen_reads_text_as_the_whole_model_does() -> None:
    torch.manual_seed(8)
    module = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**models.QWEN_VL)).eval()
    ids = torch.randint(2, 64, (2, 9))
    mask = (torch.arange(9)[None] < torch.tensor([[9], [5]])).long()
    row = MODULES["Qwen2_5_VLForConditionalGeneration"][0]
    with torch.no_grad():
        expected = module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        found = row.call({})(module, ids, mask)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_its_instruction_has_as_many_tokens_as_the_pipeline_drops(qwen: Source) -> None:
    pipe = load_pipeline(qwen)
    before = pipe.prompt_template_encode.split("{}")[0]
    assert len(pipe.tokenizer(before).input_ids) == pipe.prompt_template_encode_start_idx == 34
    with torch.no_grad():
        embeds, mask = pipe.encode_prompt(["a red circle", "a large red circle on a small square"])
    assert embeds.shape == (2, 8 + 5, 32) and mask.sum(1).tolist() == [3 + 5, 8 + 5]


def test_a_changed_picture_on_engines_equals_torch_s(
    qwen: Source, graphs: list[tuple[Component, ir.Model]], tmp_path: Path
) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    on_torch = diffusers.QwenImageImg2ImgPipeline(**load_pipeline(qwen).components)
    on_torch.set_progress_bar_config(disable=True)
    call = dict(qwen.generation)
    expected = on_torch(
        "a large red circle", image=picture, strength=0.7, generator=torch.Generator().manual_seed(9),
        output_type="np", **call,
    ).images[0]  # fmt: skip
    with engines.load(artifact_of(tmp_path / "artifact", qwen, graphs)) as pipe:
        found = pipe("a large red circle", image=picture, strength=0.7, seed=9)
        other = pipe("a large red circle", image=picture, strength=0.7, seed=10)
    assert np.abs(np.asarray(found, float) - expected * 255).max() <= 1
    assert np.abs(np.asarray(found, int) - np.asarray(other, int)).max() > 2


def test_engines_take_prompts_of_any_length(
    qwen: Source, graphs: list[tuple[Component, ir.Model]], tmp_path: Path
) -> None:
    artifact = Artifact.open(artifact_of(tmp_path / "artifact", qwen, graphs))

    def shapes(component: str) -> Profile:
        return profile(artifact, component, artifact.model(component, "fp16"), [(32, 32)], 2)

    text, denoiser = shapes("text_encoder")["input_ids"], shapes("transformer")
    assert (text.min, text.max) == ((1, 1), (2, 34 + 16))  # the instruction before the prompt
    assert (denoiser["encoder_hidden_states"].min, denoiser["encoder_hidden_states"].max) == ((1, 1, 32), (2, 16, 32))
    assert denoiser["hidden_states"].max == (2, 64, 16) and denoiser["img_ids"].min == (64, 3)
    assert shapes("vae_decoder")["latent_sample"].max == (2, 4, 1, 16, 16)


@pytest.fixture(scope="module")
def built(qwen: Source, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m export.build` makes of it."""
    out, few = (
        tmp_path_factory.mktemp("built") / "qwen",
        ("--rank", "16", "--drop-fp16", "--text-encoder-bits", "4", *SMALL),
    )
    code, _, stderr = build("--model", qwen.root, "--out", out, "--cache", store.root, *few)
    assert code == 0, stderr
    return out


def test_it_is_built_from_its_pipeline_to_its_report(built: Path) -> None:
    manifest = Artifact.open(built).manifest
    assert manifest["pipeline"] == "QwenImagePipeline"
    assert len(manifest["layers"]["svdq-int4"]["transformer"]) == 10 + 7  # nothing reads the last block's text
    assert len(manifest["layers"]["svdq-int4"]["text_encoder"]) == 2 * 7
    assert all(set(part["tensorrt"]) == {"svdq-int4"} for part in manifest["components"].values())
    (four,) = json.loads((built / "report.json").read_text())["presets"]
    assert four["fidelity"]["psnr_db"]["min"] > 30 and four["layer_error"]["max"] < 0.2


def test_its_bundle_draws_on_a_device_what_the_engines_draw_here(built: Path, tmp_path: Path) -> None:
    """From the plugin form, with prompts of any length, on a Jetson of stand-ins."""
    bundle = write_bundle(Artifact.open(built), find("agx-orin"), out=tmp_path / "out")
    device = place(bundle, tmp_path, compile_libcuda(tmp_path))
    (device.bundle / "plugin" / "libsvdq_plugin.so").write_bytes(b"stand-in")
    assert (done := device.build()).returncode == 0, done.stderr
    with engines.load(built) as pipe:
        for prompt in ("a red circle", "a large red circle above a small green square on a blue cross"):
            done = device.run("--prompt", prompt, "--seed", 3, "--output", tmp_path / "image.png")
            assert done.returncode == 0, done.stderr
            found, here = (
                np.asarray(image)[None] for image in (Image.open(tmp_path / "image.png"), pipe(prompt, seed=3))
            )
            assert psnr_db(mean_squared_error(found, here)).min() > 60
    done = device.run("--validate", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["psnr_db"]["min"] > 30, done.stderr
