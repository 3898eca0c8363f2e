"""Bad input to the build: one sentence that says what to do, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from artifact.lock import held
from tests.compile.commands import ROOT, refused

MODEL = ROOT / "export" / "bundled" / "shapes-dit"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy)
    return copy


Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "svdq-int"), ["'svdq-int'", "did you mean 'svdq-int4'"]),
        (("--compare", "int4-rtn,fp15"), ["'fp15'", "did you mean 'fp16'"]),
        (("--target", "agx-orni"), ["agx-orni", "agx-orin"]),
        (("--group-size", "32"), ["--group-size is 32", "64 and 128"]),
        (("--rank", "-1"), ["--rank is -1", "0 for no low-rank branch"]),
        (("--reserve-rank", "-16"), ["--reserve-rank is -16", "rank of the LoRAs"]),
        (("--dtype", "float8"), ["--dtype is 'float8'", "float16 or float32"]),
        (("--references", "-1"), ["--references is -1"]),
        (("--steps", "-2"), ["--steps is -2"]),
        (("--cache-limit", "0"), ["--cache-limit is 0.0", "such as 50"]),
        (("--cache-limit", "nan"), ["--cache-limit is nan"]),
        (("--executor", "dask"), ["--executor is 'dask'", "local or ray"]),
        (("--ray-address", "10.0.0.5:6379"), ["'10.0.0.5:6379'", "add --executor ray"]),
        (
            ("--executor", "ray", "--ray-address", "10.0.0.5:6379", "--max-memory", "8GB"),
            ["10.0.0.5:6379", "leave it out"],
        ),
        (("--max-memory", "8"), ["--max-memory is 8 bytes", "with its unit"]),
        (("--max-memory", "lots"), ["--max-memory lots is no amount"]),
        (("--model", "shapes-dti"), ["shapes-dti", "shapes-dit"]),
        (("--config", "nowhere.yaml"), ["nowhere.yaml", "cannot be read"]),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], words: list[str]
) -> None:
    sentence = refused(capsys, "--out", tmp_path / "out", *arguments)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_no_pipeline_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert "model_index.json" in refused(capsys, "--model", tmp_path, "--out", tmp_path / "out")


def test_pickled_weights_are_refused(model: Path, tmp_path: Path, capsys: Capture) -> None:
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    (model / "SHA256SUMS.json").unlink(missing_ok=True)
    sentence = refused(capsys, "--model", model, "--out", tmp_path / "out")
    assert "diffusion_pytorch_model.bin" in sentence and "safetensors" in sentence
    assert not (tmp_path / "out").exists()


def test_truncated_and_flipped_weights_are_refused(model: Path, tmp_path: Path, capsys: Capture) -> None:
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    for damaged in (whole[:-1000], whole[:50], b"\xff" * 8 + whole[8:], flipped):
        weights.write_bytes(damaged)
        sentence = refused(capsys, "--model", model, "--out", tmp_path / "out")
        assert "diffusion_pytorch_model.safetensors" in sentence
    assert not (tmp_path / "out").exists()


def test_a_component_of_an_unknown_class_is_named_with_what_is_supported(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    index = json.loads((model / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "ZImageTransformer2DModel"]
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "SHA256SUMS.json").unlink(missing_ok=True)
    sentence = refused(capsys, "--model", model, "--out", tmp_path / "out")
    assert "transformer is a ZImageTransformer2DModel" in sentence and "Transformer2DModel" in sentence.split(";")[1]


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"a caf\xe9\n", "is not UTF-8")]
)
@pytest.mark.parametrize("flag", ["--prompts", "--reference-prompts"])
def test_unreadable_prompts_are_refused_at_once(
    tmp_path: Path, capsys: Capture, flag: str, content: bytes, words: str
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    sentence = refused(capsys, flag, tmp_path / "prompts.txt", "--out", tmp_path / "out")
    assert words in sentence and "prompts.txt" in sentence
    assert not (tmp_path / "out").exists()


def test_an_out_directory_that_cannot_be_made_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    assert "Cannot write" in refused(capsys, "--out", tmp_path / "file" / "out")


def test_a_directory_that_is_being_built_in_is_refused(tmp_path: Path, capsys: Capture) -> None:
    with held(tmp_path):
        assert "is being built by process" in refused(capsys, "--out", tmp_path)
