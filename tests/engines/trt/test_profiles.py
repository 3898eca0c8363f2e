"""Shapes that engines are built for."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import targets
from engines.trt.profiles import Range, parse_size, profile, sizes_for, to_json
from tests.engines import tiny
from tests.engines.trt.small import PRESET, WORDS

AGX, NANO = targets.find("agx-orin"), targets.find("orin-nano")


def test_without_a_wish_it_is_the_model_s_size_and_half_of_it(artifact: Artifact) -> None:
    assert sizes_for(artifact, AGX) == [(64, 64), (32, 32)]
    artifact.manifest["generation"] |= {"height": 1024, "width": 768}
    assert sizes_for(artifact, AGX) == [(1024, 768), (512, 384)]
    assert sizes_for(artifact, NANO) == [(512, 384), (256, 192)]  # its largest side


def test_the_first_wish_is_tuned_for_and_all_are_within(artifact: Artifact) -> None:
    model = artifact.tensorrt("transformer", PRESET)
    shapes = profile(artifact, "transformer", model, sizes_for(artifact, AGX, [(64, 32), (64, 128), (32, 32)]), 2)
    assert shapes["x"] == Range((1, 16, 128), (2, 32, 128), (2, 128, 128))
    assert to_json(shapes)["emb"] == {"min": [1, 128], "opt": [2, 128], "max": [2, 128]}
    assert profile(artifact, "text_encoder", artifact.tensorrt("text_encoder", PRESET), [(64, 64)])[
        "input_ids"
    ] == Range((1, WORDS), (1, WORDS), (1, WORDS))


def test_a_denoiser_that_sees_both_halves_of_the_guidance_may_see_one(stable_diffusion: tiny.Tiny) -> None:
    artifact = Artifact.open(stable_diffusion.root, verify=False)
    model = artifact.model("unet", "fp16")
    sample = profile(artifact, "unet", model, [(32, 32)], 3)["sample"]
    assert (sample.min[0], sample.opt[0], sample.max[0]) == (1, 6, 6)
    artifact.manifest["generation"]["guidance_scale"] = 1.0
    sample = profile(artifact, "unet", model, [(32, 32)], 3)["sample"]
    assert (sample.min[0], sample.opt[0], sample.max[0]) == (1, 3, 6)


def test_an_input_without_open_axes_is_no_part_of_the_profile(artifact: Artifact, tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(str(artifact.tensorrt("vae_decoder", PRESET)))
    for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, (1, 16, 16, 16), strict=True):
        dim.dim_value = size
    onnx.save(proto, str(tmp_path / "fixed.onnx"))
    (fixed,) = profile(artifact, "vae_decoder", tmp_path / "fixed.onnx", [(64, 64), (32, 32)]).values()
    assert fixed == Range((1, 16, 16, 16), (1, 16, 16, 16), (1, 16, 16, 16), dynamic=False)


@pytest.mark.parametrize(("text", "size"), [("768", (768, 768)), ("1024x768", (768, 1024)), (" 64 ", (64, 64))])
def test_sizes_are_given_width_first(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1024x", "x64", "64x64x3", "-64", "big"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--resolution is"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((0, 64), "height of 0"),
        ((64, 60), "width of 60: small takes multiples of 8"),
        ((64, 1032), "up to 1024 pixels"),
    ],
)
def test_a_size_that_model_or_target_do_not_take_is_refused(
    artifact: Artifact, size: tuple[int, int], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        sizes_for(artifact, AGX, [(64, 64), size])
