"""Checkpoints of random weights: of the published size, accepted by what reads real ones, the same at every run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from artifact.errors import UserError
from artifact.sampling import initial_noise, sample
from bench.drawn import checkpoint
from bench.drawn.architectures import ARCHITECTURES, SHALLOW
from bench.drawn.checkpoint import config_of, write_checkpoint
from bench.drawn.weights import BLOCK, Weights
from export.components import components, latent_rule
from export.fake_module import fake_module
from export.pipeline import load_pipeline
from export.source import open_source
from export.weights import find_weight

NAMES = sorted(ARCHITECTURES)
ROOT = Path(__file__).resolve().parents[2]

# Parameters as the model cards and the conversion scripts count them.
PARAMETERS = {
    ("flux", "transformer"): 11_901_408_320, ("flux", "text_encoder"): 123_060_480,
    ("flux", "text_encoder_2"): 4_762_310_656, ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840, ("sdxl", "vae"): 83_653_863,
    ("pixart", "transformer"): 610_856_096, ("sana", "transformer"): 1_604_462_752,
    ("sana", "text_encoder"): 2_614_341_888,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of every architecture."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in NAMES:
        write_checkpoint(ARCHITECTURES[name], root / name, tiny=True)
    return {name: root / name for name in NAMES}


@pytest.mark.parametrize(("name", "module"), PARAMETERS)
def test_a_full_module_has_as_many_parameters_as_the_published_one(name: str, module: str) -> None:
    made = ARCHITECTURES[name].modules[module]
    empty = checkpoint.empty_module(made, config_of(made, full_text_encoders=True, tiny=False))
    tensors = checkpoint.tensors_of(empty, "float16")
    assert sum(t.nbytes for t in tensors) == 2 * PARAMETERS[name, module]


def test_a_shallow_text_encoder_has_the_published_width() -> None:
    made = ARCHITECTURES["flux"].modules["text_encoder_2"]
    full, shallow = (config_of(made, full, tiny=False) for full in (True, False))
    assert shallow == full | {"num_layers": SHALLOW} and full["num_layers"] == 24


@pytest.mark.parametrize("name", NAMES)
def test_the_compiler_opens_it_and_finds_every_parameter(tiny: dict[str, Path], name: str) -> None:
    source = open_source(str(tiny[name]))
    found = components(source)
    assert {c.role for c in found} == {"text_encoder", "denoiser", "vae_decoder", "vae_encoder"}
    for component in found:
        index = source.weights(component.module)
        module, _ = fake_module(component, "float32")
        for parameter, value in module.named_parameters():
            weight = find_weight(component, index, parameter)
            assert weight.shape == tuple(value.shape), f"{component.name} {parameter}"
            array = np.asarray(weight.read(), np.float32)
            assert np.isfinite(array).all() and array.any(), f"{component.name} {parameter}"
        assert {w.dtype for w in index.values()} == {"F16" if name in ("sdxl", "pixart") else "BF16"}


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_loads_it_and_draws_finite_images(tiny: dict[str, Path], name: str) -> None:
    source = open_source(str(tiny[name]))
    call = source.generation
    noise = initial_noise(latent_rule(source), [0], call["height"], call["width"])
    drawn = sample(load_pipeline(source), ["a red fox, “naïve”"], noise, call)
    assert drawn.images.shape == (1, 32, 32, 3) and np.isfinite(drawn.latents).all()
    assert drawn.images.std() > 5


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_gives_every_byte_an_id_and_ends_as_the_encoder_expects(tiny: dict[str, Path], name: str) -> None:
    from transformers import AutoTokenizer

    for folder, tokens in ARCHITECTURES[name].tokenizers.items():
        tokenizer = AutoTokenizer.from_pretrained(tiny[name] / folder)
        rows = json.loads((tiny[name] / folder.replace("tokenizer", "text_encoder") / "config.json").read_text())
        text = "fox é"
        ids = tokenizer(text, padding="max_length", max_length=12).input_ids
        start = [] if tokens.start is None else [tokens.start % rows["vocab_size"]]
        end = [] if tokens.end is None else [tokens.end % rows["vocab_size"]]
        used = len(start) + len(text.encode()) + len(end)
        assert ids[: len(start)] == start and ids[used - len(end) : used] == end
        assert ids[used:] == [tokens.pad % rows["vocab_size"]] * (12 - used)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_equal_seeds_give_equal_bytes_and_another_seed_others(tiny: dict[str, Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        write_checkpoint(ARCHITECTURES["sana"], tmp_path / str(seed), seed=seed, tiny=True)
    files = [p.relative_to(tiny["sana"]) for p in sorted(tiny["sana"].rglob("*")) if p.is_file()]
    assert [p.relative_to(tmp_path / "0") for p in sorted((tmp_path / "0").rglob("*")) if p.is_file()] == files
    for file in files:
        first, again, other = ((root / file).read_bytes() for root in (tiny["sana"], tmp_path / "0", tmp_path / "1"))
        assert first == again, file
        assert (first == other) == (file.suffix != ".safetensors"), file


def test_shards_hold_what_one_file_would(tiny: dict[str, Path], tmp_path: Path) -> None:
    write_checkpoint(ARCHITECTURES["flux"], tmp_path / "sharded", tiny=True, max_shard_bytes=50_000)
    names = sorted(p.name for p in (tmp_path / "sharded" / "transformer").glob("*.safetensors"))
    count = len(names)
    assert count > 2 and names[0] == f"diffusion_pytorch_model-00001-of-{count:05}.safetensors"
    assert (tmp_path / "sharded" / "text_encoder" / "model.safetensors.index.json").exists()
    whole, parts = (open_source(str(p)) for p in (tiny["flux"], tmp_path / "sharded"))
    for module in ("transformer", "text_encoder_2"):
        one, many = whole.weights(module), parts.weights(module)
        assert list(one) == list(many)
        assert all(np.array_equal(one[n].read().view(np.uint16), many[n].read().view(np.uint16)) for n in one)
    assert load_pipeline(parts).transformer.config.num_layers == 1


def test_a_matrix_has_a_decaying_spectrum_outlier_channels_and_unit_gain() -> None:
    rows, columns = 1024, 768
    assert rows * columns > 2 * BLOCK  # several blocks
    data = b"".join(bytes(block) for block in Weights(0, "float16").blocks("a.weight", (rows, columns)))
    weight = np.frombuffer(data, np.float16).reshape(rows, columns).astype(np.float32)
    assert 0.9 < np.square(weight).mean() * columns < 1.1
    norms = np.sort(np.linalg.norm(weight, axis=0))
    assert norms[-5] > 3 * np.median(norms)  # one channel in a hundred
    inner = weight / np.linalg.norm(weight, axis=0)
    singular = np.square(np.linalg.svd(inner, compute_uv=False))
    noise = np.square(np.linalg.svd(np.random.default_rng(0).permutation(inner.ravel()).reshape(inner.shape),
                                    compute_uv=False))  # fmt: skip
    assert singular[:32].sum() / singular.sum() > 3 * noise[:32].sum() / noise.sum()
    assert singular[0] > 2 * singular[3] > 4 * singular[20]


def test_a_tensor_does_not_depend_on_what_was_drawn_before() -> None:
    alone = b"".join(bytes(b) for b in Weights(3, "bfloat16").blocks("x", (5, 7)))
    weights = Weights(3, "bfloat16")
    assert b"".join(bytes(b) for b in weights.blocks("y", (5, 7))) != alone
    assert b"".join(bytes(b) for b in weights.blocks("x", (5, 7))) == alone
    assert len(alone) == 5 * 7 * 2


def test_what_is_there_is_kept_and_a_disk_without_room_is_said_before_anything_is_written(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="exists"):
        write_checkpoint(ARCHITECTURES["sana"], tiny["sana"], tiny=True)
    monkeypatch.setattr("artifact.files.shutil.disk_usage", lambda path: type("Usage", (), {"total": 9, "free": 1}))
    with pytest.raises(UserError, match="0 MiB free, 1 MiB needed"):
        write_checkpoint(ARCHITECTURES["sana"], tmp_path / "sana", tiny=True)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_checkpoint_and_prints_what_it_took(tmp_path: Path) -> None:
    command = [sys.executable, "bench/checkpoint.py", "pixart", "--scale", "tiny", "--out", str(tmp_path / "p")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "transformer/diffusion_pytorch_model.safetensors" in done.stdout and "peak memory" in done.stdout
    assert open_source(str(tmp_path / "p")).pipeline == "PixArtSigmaPipeline"
