"""What is refused when a model is opened, and what an opened one says about itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from artifact.errors import UserError
from export import source as source_module
from export.components import components
from export.digests import SUMS, write_sums
from export.source import main, open_source

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def refusal(model: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        components(open_source(str(model)))
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_header(file: Path, change) -> None:
    """Rewrite the header of a safetensors file, leaving the data as it is."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_an_unknown_name_is_answered_with_the_nearest_bundled_one(tmp_path, monkeypatch):
    for name in ("shapes-dit", "shapes-unet"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
    monkeypatch.setattr(source_module, "BUNDLED", tmp_path)
    assert "did you mean 'shapes-dit'" in refusal("shape-dit")


def test_a_single_file_is_told_how_to_become_a_directory(tmp_path):
    save_file({"weight": np.zeros(2, np.float16)}, tmp_path / "sd.safetensors")
    assert "from_single_file" in refusal(tmp_path / "sd.safetensors")


def test_a_directory_without_model_index_is_refused(tmp_path):
    assert "model_index.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_index_is_refused(copy, text):
    (copy / "model_index.json").write_text(text)
    assert "model_index.json" in refusal(copy)


def test_weights_as_pickle_are_named_and_never_read(copy):
    (copy / WEIGHTS).rename((copy / WEIGHTS).with_suffix(".bin"))
    message = refusal(copy)
    assert "diffusion_pytorch_model.bin" in message and "safe_serialization" in message


def test_missing_weights_are_refused(copy):
    (copy / WEIGHTS).unlink()
    assert "holds no .safetensors" in refusal(copy)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(copy, length):
    file = copy / WEIGHTS
    file.write_bytes(file.read_bytes()[:length])
    assert "truncated" in refusal(copy)


def test_trailing_bytes_are_refused(copy):
    with open(copy / WEIGHTS, "ab") as f:
        f.write(b"\0")
    assert "its tensors end at byte" in refusal(copy)


def test_a_header_that_is_no_json_is_refused(copy):
    raw = bytearray((copy / WEIGHTS).read_bytes())
    raw[8:12] = b"\xff\xff\xff\xff"
    (copy / WEIGHTS).write_bytes(raw)
    assert "not one of safetensors" in refusal(copy)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("data_offsets", [0, 10**15], "has 1000000000000000 bytes"),
        ("data_offsets", [2, 34], "starts at byte"),
        ("data_offsets", [-2, 30], "not one of safetensors"),
        ("shape", [7, 7, 7], "bytes for F16"),
        ("shape", "many", "not one of safetensors"),
        ("dtype", "F12", "not one of safetensors"),
    ],
)
def test_offsets_and_shapes_that_do_not_fit_are_refused(copy, field, value, reason):
    def change(header):
        first = min((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
        header[first][field] = value

    change_header(copy / WEIGHTS, change)
    assert reason in refusal(copy)


def test_overlapping_tensors_are_refused(copy):
    def change(header):
        names = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    change_header(copy / WEIGHTS, change)
    assert "starts at byte" in refusal(copy)


def test_data_that_differs_from_the_known_sums_is_refused(copy):
    assert main(["--write-sums", str(copy)]) == 0
    open_source(str(copy))
    raw = bytearray((copy / WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (copy / WEIGHTS).write_bytes(raw)
    assert "changed or damaged" in refusal(copy)


def test_a_file_that_the_sums_do_not_list_is_refused(copy):
    write_sums(copy)
    sums = json.loads((copy / SUMS).read_text())
    del sums[WEIGHTS]
    (copy / SUMS).write_text(json.dumps(sums))
    assert "does not list" in refusal(copy)


def test_a_hub_blob_must_have_the_digest_that_names_it(copy):
    blob = copy / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    (copy / WEIGHTS).rename(blob)
    (copy / WEIGHTS).symlink_to(blob)
    assert "0000" in refusal(copy)


def test_an_unsupported_class_is_named_with_what_is_supported(copy):
    index = json.loads((copy / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "AuraFlowTransformer2DModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    message = refusal(copy)
    assert "AuraFlowTransformer2DModel" in message and "FluxTransformer2DModel" in message


def test_an_unsupported_pipeline_is_named(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "AuraFlowPipeline"}))
    assert "AuraFlowPipeline" in refusal(copy)


def test_code_of_the_model_is_never_run(copy):
    index = json.loads((copy / "model_index.json").read_text())
    index["transformer"] = ["my_transformer", "MyModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert "never run" in refusal(copy)


def test_a_folder_name_that_leads_outside_is_refused(copy):
    index = json.loads((copy / "model_index.json").read_text())
    index["../elsewhere"] = ["diffusers", "AutoencoderKL"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert "plain names" in refusal(copy)


def test_shards_are_one_index_and_a_missing_shard_is_refused(copy):
    tensors = load_file(copy / WEIGHTS)
    names = sorted(tensors)
    folder = (copy / WEIGHTS).parent
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    weight_map = {n: f for f, part in parts.items() for n in part}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (copy / WEIGHTS).unlink()
    weights = open_source(str(copy)).weights("transformer")
    assert set(weights) == set(names)
    assert all(np.array_equal(weights[n].read(), tensors[n]) for n in names)
    (folder / "b.safetensors").unlink()
    assert "b.safetensors" in refusal(copy)


def test_a_shard_outside_its_folder_is_refused(copy):
    index = (copy / WEIGHTS).parent / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../vae/diffusion_pytorch_model.safetensors"}}))
    assert "names the shard" in refusal(copy)


def test_the_fp16_variant_is_read_where_there_is_no_other(copy):
    assert open_source(str(copy)).variant is None
    (copy / WEIGHTS).rename(copy / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
    source = open_source(str(copy))
    assert source.variant == "fp16" and len(source.weights("transformer")) > 20


def test_the_hash_is_of_the_content_not_of_the_place(flux, copy, tmp_path):
    assert open_source(str(copy)).sha256 == flux.sha256
    shutil.move(copy, tmp_path / "moved")
    assert open_source(str(tmp_path / "moved")).sha256 == flux.sha256
    config = tmp_path / "moved" / "vae" / "config.json"
    config.write_text(config.read_text().replace("0.1", "0.2"))
    assert open_source(str(tmp_path / "moved")).sha256 != flux.sha256


def test_generation_comes_from_the_model_or_from_its_family(flux, copy):
    assert flux.generation["num_inference_steps"] == 3
    (copy / "generation.json").unlink()
    generation = open_source(str(copy)).generation
    assert generation["num_inference_steps"] == 4 and generation["height"] == 1024
