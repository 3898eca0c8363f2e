"""Models that draw from pictures: what a build asks for, what its layers see, what its references keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from artifact.errors import UserError
from artifact.pictures import Pictures, read_pictures
from artifact.sampling import initial_noise, sample
from artifact.store import Store
from export import calibrate as calibration
from export.calibrate import calibrate
from export.components import components, latent_rule, picture_rule
from export.examples import Examples, read_examples
from export.options import Options
from export.pipeline import load_pipeline
from export.plan import Build
from export.quantise import sample_keys
from export.references import draw_references, write_references
from export.source import Source, open_source
from export.stages import Stages
from tests.export import models

PROMPTS, SEEDS = ["a red circle", "a small blue square", "a green cross"], [0, 1, 2]
EMBEDDER = "x_embedder"


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(models.flux_fill(tmp_path_factory.mktemp("pictures") / "fill")))


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(models.flux_control(tmp_path_factory.mktemp("pictures") / "control")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.pictures(tmp_path_factory.mktemp("pictures") / "given", 2)


@pytest.fixture(scope="module")
def pipe(fill: Source) -> Any:
    return load_pipeline(fill)


def given(source: Source, folder: Path, count: int = 3) -> Pictures:
    rule = picture_rule(source)
    assert rule is not None
    return read_pictures(folder, rule, count, 32, 32)


def test_the_noise_is_as_wide_as_the_vae_s_latents(fill: Source, control: Source) -> None:
    for source, width in ((fill, 48), (control, 32)):
        assert source.config("transformer")["in_channels"] == width
        assert latent_rule(source).shape(32, 32) == (64, 16)
        assert [c.role for c in components(source)][-2:] == ["vae_decoder", "vae_encoder"]


def test_without_a_generation_file_the_call_is_that_of_diffusers_examples(tmp_path: Path) -> None:
    root = models.flux_fill(tmp_path / "fill")
    (root / "generation.json").unlink()
    found = open_source(str(root)).generation
    assert (found["num_inference_steps"], found["guidance_scale"], found["max_sequence_length"]) == (50, 30.0, 512)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(), "FluxFillPipeline draws from a picture and its mask .*--pictures, .*--data-free --references 0"),
        (Options(references=0), "none to calibrate on: .*--pictures, or .* --data-free --references 0"),
        (Options(data_free=True), "none to draw references from: .*--reference-pictures, or .* --references 0"),
        (Options(preset="fp16"), "none to draw references from"),
        (Options(reference_pictures=Path("there")), "none to calibrate on"),
        (Options(pictures=Path("nowhere")), r"Cannot list the pictures in nowhere \(No such file"),
    ],
)
def test_pictures_that_are_needed_and_not_given_are_refused(fill: Source, options: Options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_examples(options, fill)


def test_both_ways_out_are_open(fill: Source, folder: Path) -> None:
    calibration, references = read_examples(Options(data_free=True, references=0), fill)
    assert calibration.pictures is references.pictures is None
    calibration, references = read_examples(Options(pictures=folder, calibration=5, references=3), fill)
    assert calibration.pictures is not None and references.pictures is not None
    assert len(calibration.pictures) == 5 and len(references.pictures) == 3  # two files, repeated
    np.testing.assert_array_equal(calibration.pictures.images[0], calibration.pictures.images[4])
    calibration, references = read_examples(Options(data_free=True, references=1, reference_pictures=folder), fill)
    assert calibration.pictures is None and references.pictures is not None
    assert read_examples(Options(preset="fp16", references=0), fill)[0].pictures is None


def test_the_references_own_pictures_come_before_the_calibration_s(fill: Source, folder: Path, tmp_path: Path) -> None:
    other = models.pictures(tmp_path / "other", 3)
    _, references = read_examples(Options(pictures=folder, reference_pictures=other, references=3), fill)
    assert references.pictures is not None and references.pictures.digest == given(fill, other).digest


def test_masks_are_needed_by_fill_alone(fill: Source, control: Source, tmp_path: Path) -> None:
    bare = models.pictures(tmp_path / "bare", 2, mask=False)
    found, _ = read_examples(Options(pictures=bare, references=0), control)
    assert found.pictures is not None and found.pictures.masks is None
    with pytest.raises(UserError, match="picture-0.png has no mask"):
        read_examples(Options(pictures=bare, references=0), fill)


def test_pictures_for_a_model_that_takes_none_are_refused(flux: Source, folder: Path) -> None:
    for options in (Options(pictures=folder), Options(reference_pictures=folder)):
        with pytest.raises(UserError, match="pictures is .* but a FluxPipeline takes no picture: leave it out"):
            read_examples(options, flux)
    with pytest.raises(UserError, match="leave out --pictures"):
        Options(pictures=folder, data_free=True).check()


def test_layers_see_what_the_pictures_bring(fill: Source, pipe: Any, folder: Path, tmp_path: Path) -> None:
    def seen(pictures: Pictures) -> np.ndarray:
        return calibrate(fill, pipe, {"x": EMBEDDER}, PROMPTS, SEEDS, 10_000, 0, tmp_path, pictures=pictures)["x"]

    whole = given(fill, folder)
    found = seen(whole)
    assert found.shape == (3 * 3 * 64, 48)
    assert set(np.unique(found[:, 32:])) == {0, 1}  # the mask's pixels
    others = seen(replace(whole, images=255 - whole.images))
    noise = initial_noise(latent_rule(fill), SEEDS, 32, 32).reshape(-1, 16).astype(np.float16)
    for rows in (found, others):  # the noise of the first step, whatever lies beside it
        assert {r.tobytes() for r in noise} <= {r.tobytes() for r in np.ascontiguousarray(rows[:, :16])}
    assert np.abs(found[:, 16:32].astype(float) - others[:, 16:32]).max() > 0.05


def test_every_prompt_is_drawn_with_its_own_picture_in_every_batch(
    fill: Source, pipe: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MOST_PER_CALL", 1)
    whole = given(fill, folder)
    assert whole.masks is not None
    whole.masks[:] = 0
    whole.masks[2, :8, :8] = 255  # of the last prompt's picture 64 of 1024 pixels, 16 to a token
    found = calibrate(fill, pipe, {"x": EMBEDDER}, PROMPTS, SEEDS, 10_000, 0, tmp_path, pictures=whole)["x"]
    assert found[:, 32:].sum() == 3 * 64  # at every step


def test_samples_of_other_pictures_are_other_samples(fill: Source, folder: Path, tmp_path: Path) -> None:
    from passes.layers import Layer

    build = Build(Options(), fill, components(fill), tmp_path, Store(tmp_path / "store"), Stages(quiet=True))
    layers = [Layer("x", ("x.weight",), (), None, "x", "x", 32, 32, "quantise", False)]
    pictures = given(fill, folder)
    examples = (Examples(PROMPTS, pictures), Examples(PROMPTS, replace(pictures, images=255 - pictures.images)),
                Examples(PROMPTS))  # fmt: skip
    assert len({sample_keys(build, layers, e)["x"] for e in examples}) == 3


def test_references_keep_their_pictures_and_resume_in_batches(
    fill: Source, pipe: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import references

    pictures, store = given(fill, folder), Store(tmp_path / "store")
    whole = write_references(
        draw_references(fill, lambda: pipe, PROMPTS, SEEDS, store, None, pictures), tmp_path / "whole"
    )
    assert len([n for n in whole if n.startswith("references/pictures/")]) == 6
    rule = picture_rule(fill)
    assert rule is not None
    kept = read_pictures(tmp_path / "whole/references/pictures", rule, 3, 32, 32)
    assert kept.digest == pictures.digest
    noise = initial_noise(latent_rule(fill), SEEDS, 32, 32)
    drawn = sample(pipe, PROMPTS, noise, fill.generation, pictures=pictures)
    tensors = load_file(tmp_path / "whole/references/tensors.safetensors")
    np.testing.assert_array_equal(tensors["latents"], drawn.latents.astype(np.float16))

    monkeypatch.setattr(references, "MOST_PER_CALL", 2)  # what a picture's encoder draws does not depend on the batch
    write_references(draw_references(fill, lambda: pipe, PROMPTS, SEEDS, store, None, pictures), tmp_path / "parts")
    parts = load_file(tmp_path / "parts/references/tensors.safetensors")
    np.testing.assert_allclose(parts["latents"], tensors["latents"], rtol=0, atol=0.02)
    upside_down = replace(pictures, images=pictures.images[:, ::-1])
    write_references(draw_references(fill, lambda: pipe, PROMPTS, SEEDS, store, None, upside_down), tmp_path / "other")
    other = load_file(tmp_path / "other/references/tensors.safetensors")
    assert np.abs(other["latents"].astype(float) - parts["latents"]).max() > 0.05
