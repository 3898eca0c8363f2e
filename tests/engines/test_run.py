"""The command: an image on success; one sentence, exit code 2 and nothing written for whatever the user got wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import engines
from artifact.manifest import NAME
from engines.run import app
from tests.engines.tiny import PROMPTS, SIDE, Tiny


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def refused(output: Path, *arguments: object) -> str:
    """The sentence on stderr, after checking how it was said and that nothing was left behind."""
    before = set(output.parent.rglob("*")) if output.parent.is_dir() else set()
    code, said, error = invoke(*arguments, "--output", output)
    assert (code, said) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert (set(output.parent.rglob("*")) if output.parent.is_dir() else set()) == before
    return error


def test_an_image_is_written_and_is_the_pipelines(flux: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "new" / "image.png"
    code, said, _ = invoke(flux.root, "--prompt", PROMPTS[0], "--seed", 5, "--preset", "int4-rtn", "--steps", 2,
                           "--verbose", "--output", output)  # fmt: skip
    assert code == 0 and str(output) in said and "preset int4-rtn, seed 5" in said and "transformer" in said
    with engines.load(flux.root, "int4-rtn") as pipe:
        assert np.array_equal(np.asarray(Image.open(output)), np.asarray(pipe(PROMPTS[0], seed=5, steps=2)))
    assert [p.name for p in output.parent.iterdir()] == ["image.png"]


def test_memory_backend_and_placement_are_said(flux: Tiny, tmp_path: Path) -> None:
    code, said, _ = invoke(flux.root, "--prompt", PROMPTS[0], "--backend", "onnxruntime", "--max-memory", "64GB",
                           "--verbose", "--output", tmp_path / "a.png")  # fmt: skip
    assert code == 0 and re.search(r"^memory  resident, peak \d+ MB \(rss\)$", said, re.MULTILINE)
    code, said, _ = invoke(flux.root, "--prompt", PROMPTS[0], "--memory", "streaming", "--verbose",
                           "--output", tmp_path / "b.png")  # fmt: skip
    assert code == 0 and "memory  streaming, peak" in said
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_mask_keeps_the_rest(flux: Tiny, tmp_path: Path) -> None:
    start, mask, output = tmp_path / "start.png", tmp_path / "mask.png", tmp_path / "image.png"
    Image.new("RGB", (SIDE, SIDE), "orange").save(start)
    Image.new("L", (SIDE, SIDE), 0).save(mask)
    drawn = {}
    for white in (False, True):
        Image.new("L", (SIDE, SIDE), 255 * white).save(mask)
        code, _, error = invoke(flux.root, "--prompt", PROMPTS[0], "--image", start, "--mask", mask, "--output", output)
        assert code == 0, error
        drawn[white] = np.asarray(Image.open(output), int)
    assert np.abs(drawn[True] - drawn[False]).max() > 2
    assert "without --image" in refused(tmp_path / "x.png", flux.root, "--prompt", "a", "--mask", mask)
    assert "--mask /nowhere.png does not exist" in refused(
        tmp_path / "x.png", flux.root, "--prompt", "a", "--image", start, "--mask", "/nowhere.png"
    )


def test_an_image_to_start_from_is_used(flux: Tiny, tmp_path: Path) -> None:
    start, output = tmp_path / "start.jpg", tmp_path / "image.webp"
    Image.new("RGB", (50, 70), "orange").save(start)
    code, said, _ = invoke(flux.root, "--prompt", PROMPTS[0], "--image", start, "--strength", 0.5, "--output", output,
                           "--quiet")  # fmt: skip
    assert (code, said) == (0, "")
    assert Image.open(output).size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "fp32"), "holds fp16, int4-rtn: did you mean 'fp16'?"),
        (("--steps", "0"), "steps is 0"),
        (("--height", "20"), "height is 20 pixels, the model needs a multiple of 8: give 16 or 24"),
        (("--seed", "-1"), "seed is -1"),
        (("--backend", "onnxrt"), "no backend 'onnxrt': did you mean 'onnxruntime'?"),
        (("--backend", "tensorrt"), "tensorrt is not installed"),
        (("--memory", "small"), "no memory mode 'small'"),
        (("--max-memory", "lots"), "--max-memory lots is no amount of memory"),
        (("--max-memory", "1MB"), "in streaming mode, more than --max-memory 1 MB: allow more"),
        (("--image", "/nowhere.png"), "does not exist"),
        (("--image", __file__), "cannot be read as an image"),
    ],
)
def test_a_bad_option_is_refused(flux: Tiny, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(tmp_path / "x.png", flux.root, "--prompt", "a", *arguments)


@pytest.mark.parametrize("strength", ["0", "-1", "1.01"])
def test_a_strength_outside_0_to_1_is_refused(flux: Tiny, tmp_path: Path, strength: str) -> None:
    start = tmp_path / "start.png"
    Image.new("RGB", (SIDE, SIDE)).save(start)
    assert "strength is" in refused(tmp_path / "x.png", flux.root, "--prompt", "a", "--image", start,
                                    "--strength", strength)  # fmt: skip


def test_a_truncated_start_image_is_refused(flux: Tiny, tmp_path: Path) -> None:
    start = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(start)
    start.write_bytes(start.read_bytes()[:3000])
    assert "cannot be read" in refused(tmp_path / "x.png", flux.root, "--prompt", "a", "--image", start)


def test_an_output_that_cannot_be_written_is_refused_first(flux: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a directory" in refused(tmp_path, flux.root, "--prompt", "a")
    assert "no image suffix" in refused(tmp_path / "x.txt", flux.root, "--prompt", "a")
    assert "cannot be written" in refused(tmp_path / "file" / "x.png", flux.root, "--prompt", "a")


def test_a_directory_without_an_artifact_is_refused(tmp_path: Path) -> None:
    assert f"holds no {NAME}" in refused(tmp_path / "x.png", tmp_path, "--prompt", "a")


def test_a_damaged_manifest_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / NAME).write_text('{"format": 1, "fi', encoding="utf-8")
    assert "is not a manifest" in refused(tmp_path / "x.png", copied, "--prompt", "a")


@pytest.mark.parametrize("name", ["transformer/fp16.onnx", "tokenizer/tokenizer.json", "references/prompts.json"])
def test_a_changed_file_is_refused_by_name(copied: Path, tmp_path: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    error = refused(tmp_path / "x.png", copied, "--prompt", "a")
    assert name in error and "hash differs" in error


def test_a_missing_file_is_refused_by_name(copied: Path, tmp_path: Path) -> None:
    (copied / "vae_decoder/fp16.onnx").unlink()
    assert "vae_decoder/fp16.onnx is missing" in refused(tmp_path / "x.png", copied, "--prompt", "a")


@pytest.mark.parametrize("where", ["../outside.onnx", "/etc/passwd", "transformer/../../outside.onnx"])
def test_a_path_out_of_the_artifact_is_refused(copied: Path, tmp_path: Path, where: str) -> None:
    (copied.parent / "outside.onnx").write_bytes((copied / "transformer/fp16.onnx").read_bytes())
    text = json.loads((copied / NAME).read_text(encoding="utf-8"))
    text["components"]["transformer"]["models"]["fp16"] = where
    (copied / NAME).write_text(json.dumps(text), encoding="utf-8")
    assert "leads out of" in refused(tmp_path / "x.png", copied, "--prompt", "a")


def test_a_link_out_of_the_artifact_is_refused(copied: Path, tmp_path: Path) -> None:
    model = copied / "transformer/fp16.onnx"
    outside = copied.parent / "outside.onnx"
    model.rename(outside)
    model.symlink_to(outside)
    assert "leads out of" in refused(tmp_path / "x.png", copied, "--prompt", "a")


def test_debug_lets_the_exception_through(flux: Tiny, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(flux.root), "--prompt", "a", "--output", str(tmp_path / "x.png"),
                                      "--steps", "0", "--debug"])  # fmt: skip
    assert type(result.exception).__name__ == "UserError"
