"""Bad input to `python -m export.lora`: one sentence that says what to do, exit code 2, the artifact as it was."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.manifest import Artifact
from export.lora.__main__ import app
from tests.compile import loras

DENOISER = "transformer"
LINEARS = {"transformer_blocks.0.attn.to_q": (192, 192), "x_embedder": (192, 64)}
GOOD = loras.random(LINEARS, DENOISER)
A, B = (f"transformer.x_embedder.lora_{m}.weight" for m in "AB")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def artifact(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: nothing here may change it."""
    return Path(shutil.copytree(built, tmp_path_factory.mktemp("input") / "artifact"))


@pytest.fixture(autouse=True)
def unchanged(artifact: Path) -> Any:
    before = {p: p.stat().st_mtime_ns for p in artifact.rglob("*") if not p.name.startswith(".lock")}
    yield
    assert {
        p: p.stat().st_mtime_ns for p in artifact.rglob("*") if not p.name.startswith(".lock")
    }.keys() == before.keys()
    assert (artifact / "manifest.json").stat().st_mtime_ns == before[artifact / "manifest.json"]


def refused(capsys: Capture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        app([str(a) for a in arguments], standalone_mode=False)
    err = capsys.readouterr().err
    assert ended.value.code == 2, err
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in err, err
    return lines[0].removeprefix("error: ")


def tensors(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """A good file's tensors with some replaced ("A", "B": x_embedder's) or left out (None)."""
    arrays = {f"{n}.lora_A.weight": a for n, (a, _) in GOOD.items()}
    arrays |= {f"{n}.lora_B.weight": b for n, (_, b) in GOOD.items()}
    for name, array in changed.items():
        key = {"A": A, "B": B}.get(name, name)
        arrays.pop(key, None)
        if array is not None:
            arrays[key] = array
    return arrays


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"A": zeros(0, 64), "B": zeros(192, 0)}, ["rank 0", "x_embedder"]),
        ({"A": np.full((4, 64), np.nan, np.float32)}, ["NaN or infinity", A]),
        ({"B": np.full((192, 4), np.inf, np.float32)}, ["NaN or infinity", B]),
        ({"A": zeros(4, 65)}, ["[192, 65]", "[192, 64]", "another size"]),
        ({"A": zeros(8, 64)}, ["[8, 64]", "[192, 4]", "do not multiply"]),
        ({"A": zeros(256)}, [A, "[256]", "a matrix"]),
        ({"A": zeros(4, 64).astype(np.int32)}, ["I32", "a matrix"]),
        ({"B": None}, [f"without {B!r}", "saved in part"]),
        ({"transformer.x_embedder.weight": zeros(192, 64)}, ["no LoRA has", "transformer.x_embedder.weight"]),
        ({"transformer.x_embedder.alpha": zeros(3)}, ["[3]", "one number"]),
        ({"transformer.y.lora_A.weight": zeros(4, 8), "transformer.y.lora_B.weight": zeros(8, 4)},
         ["1 of 3 layers", "'transformer.y'", "FluxTransformer2DModel"]),
        ({"lora_unet_foo.lora_down.weight": zeros(4, 8), "lora_unet_foo.lora_up.weight": zeros(8, 4)},
         ["1 of 3 layers", "'lora_unet_foo'"]),
        ({"x_embedder.lora_A.weight": zeros(4, 64), "x_embedder.lora_B.weight": zeros(192, 4)}, ["twice"]),
        ({"transformer.x_embedder.lora_magnitude_vector": zeros(192)}, ["DoRA"]),
        ({"lora_unet_x_embedder.dora_scale": zeros(192)}, ["DoRA"]),
        ({"lora_unet_x_embedder.hada_w1_a": zeros(192, 4)}, ["LoHa"]),
        ({"lora_unet_x_embedder.lokr_w1": zeros(8, 8)}, ["LoKr"]),
        ({"lora_unet_x_embedder.lora_mid.weight": zeros(4, 4, 3, 3)}, ["Tucker"]),
        ({"transformer.x_embedder.lora_B.bias": zeros(192)}, ["with biases"]),
        ({"diffusion_model.x_embedder.diff_b": zeros(192)}, ["whole differences"]),
        ({"A": np.full((4, 64), 3e38, np.float32), "B": np.full((192, 4), 100, np.float32)},
         ["beyond float16", "--strength"]),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": np.full((4, 192), 1e6, np.float32),
          "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": np.full((192, 4), 1e6, np.float32)},
         ["transformer_blocks.0.attn.to_qkv", "beyond float16", "--strength"]),
    ],
)  # fmt: skip
def test_a_bad_tensor_is_refused(
    artifact: Path, tmp_path: Path, capsys: Capture, changed: dict[str, Any], words: list[str]
) -> None:
    path = loras.saved(tmp_path / "bad.safetensors", tensors(**changed))
    sentence = refused(capsys, artifact, path)
    assert all(word in sentence for word in words), sentence


def another_architecture(path: Path) -> None:
    loras.as_kohya(path, loras.random(loras.linears("shapes-unet", "unet"), "unet"))


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"lora": [1.0]}))


def a_torch_archive(path: Path) -> None:
    import torch

    torch.save({"lora": torch.zeros(2)}, path)


def truncated(path: Path) -> None:
    loras.as_peft(path, GOOD)
    path.write_bytes(path.read_bytes()[:-100])


def text(path: Path) -> None:
    path.write_text("not a LoRA at all, but long enough for a header", encoding="utf-8")


def empty(path: Path) -> None:
    loras.saved(path, {})


def bad_settings(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(tensors(), path, metadata={"lora_adapter_metadata": "{"})


def dora_by_its_settings(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(tensors(), path, metadata={"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            another_architecture,
            ["another architecture", "none of its", "FluxTransformer2DModel", "trained on this model"],
        ),
        (a_pickle, ["is a pickle", "safetensors"]),
        (a_torch_archive, ["is a pickle", "safetensors"]),
        (truncated, ["truncated or damaged"]),
        (text, ["truncated or damaged"]),
        (empty, ["holds no tensor"]),
        (bad_settings, ["lora_adapter_metadata", "no JSON object"]),
        (dora_by_its_settings, ["DoRA", "use_dora"]),
        (Path.mkdir, ["cannot be read", "Is a directory"]),
        (lambda path: None, ["cannot be read", "No such file"]),
    ],
)
def test_a_file_that_is_no_lora_of_this_model_is_refused(
    artifact: Path, tmp_path: Path, capsys: Capture, make: Callable[[Path], None], words: list[str]
) -> None:
    path = tmp_path / "lora.safetensors"
    make(path)
    sentence = refused(capsys, artifact, path)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["nothing to do", "--remove or --list"]),
        (("{good}", "--remove"), ["LoRAs and --remove do not go together"]),
        (("--remove",), ["has no LoRA", "nothing to remove"]),
        (("--remove", "--strength", "1"), ["--strength and --preset"]),
        (("{good}", "--strength", "1", "--strength", "2"), ["1 LoRAs and 2 of --strength"]),
        (("{good}", "--strength", "nan"), ["--strength is nan"]),
        (("{good}", "--strength", "0"), ["--strength is 0"]),
        (("{good}", "--strength", "1e9"), ["beyond float16", "smaller --strength"]),
        (("{good}", "--preset", "svdq-int"), ["'svdq-int'", "did you mean 'svdq-int4'"]),
    ],
)
def test_a_wrong_flag_is_refused(
    artifact: Path, tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], words: list[str]
) -> None:
    good = loras.as_peft(tmp_path / "good.safetensors", GOOD)
    sentence = refused(capsys, artifact, *(a.format(good=good) for a in arguments))
    assert all(word in sentence for word in words), sentence


def test_a_directory_that_is_no_artifact_is_refused(tmp_path: Path, capsys: Capture) -> None:
    good = loras.as_peft(tmp_path / "good.safetensors", GOOD)
    assert "holds no manifest.json" in refused(capsys, tmp_path, good)


def test_a_damaged_artifact_is_refused(artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    with open(copy / DENOISER / "svdq-int4.onnx.data", "r+b") as f:
        f.write(b"\1\2\3")
    good = loras.as_peft(tmp_path / "good.safetensors", GOOD)
    assert "is not the file that was built" in refused(capsys, copy, good)


def test_a_list_says_what_is_in(artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    app([str(artifact), "--list"], standalone_mode=False)
    assert capsys.readouterr().out == f"{artifact} has no LoRA\n"
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    good = loras.as_peft(tmp_path / "good.safetensors", GOOD)
    app([str(copy), str(good), "--strength", "-0.5"], standalone_mode=False)
    said = capsys.readouterr().out
    app([str(copy), "--list"], standalone_mode=False)
    listed = capsys.readouterr().out
    assert said.startswith(listed)
    assert "good.safetensors" in listed and "strength -0.5  rank 4  2 layers" in listed
    assert f"svdq-int4: the rank of 1 4-bit layers of {DENOISER} grows by 16" in listed
    assert "fp16: merged into" in listed
    assert Artifact.open(copy).manifest["lora"]["adapters"][0]["layers"] == [
        "transformer.transformer_blocks.0.attn.to_q", "transformer.x_embedder",
    ]  # fmt: skip
