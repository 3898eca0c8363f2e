"""Sources that are damaged, put together wrongly, not finite or quantised already: one sentence each."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from artifact.errors import UserError
from export.digests import write_sums
from export.finite import CHUNK, digest_and_fault
from export.source import open_source
from tests.export.test_source import WEIGHTS, change_header, refusal

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def sharded(copy: Path) -> Path:
    """The transformer's folder with its weights in two shards: every second tensor in b.safetensors."""
    folder = (copy / WEIGHTS).parent
    tensors = load_file(copy / WEIGHTS)
    placement = {name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in ("a.safetensors", "b.safetensors"):
        save_file({n: tensors[n] for n, s in placement.items() if s == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": placement}))
    (copy / WEIGHTS).unlink()
    open_source(str(copy))
    return folder


def change_placement(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_a_renamed_shard_is_refused(sharded: Path) -> None:
    (sharded / "a.safetensors").rename(sharded / "c.safetensors")
    assert "names the shard 'a.safetensors', which is not in" in refusal(sharded.parent)


def test_two_shards_in_each_other_s_place_are_refused(sharded: Path) -> None:
    (sharded / "a.safetensors").rename(sharded / "c.safetensors")
    (sharded / "b.safetensors").rename(sharded / "a.safetensors")
    (sharded / "c.safetensors").rename(sharded / "b.safetensors")
    assert "in 'a.safetensors', but it is in 'b.safetensors'" in refusal(sharded.parent)


def test_a_truncated_shard_is_refused(sharded: Path) -> None:
    raw = (sharded / "b.safetensors").read_bytes()
    (sharded / "b.safetensors").write_bytes(raw[:-2])
    message = refusal(sharded.parent)
    assert "b.safetensors is truncated or damaged" in message


def test_overlapping_tensors_in_a_shard_are_refused(sharded: Path) -> None:
    def overlap(header):
        names = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
        begin, end = header[names[1]]["data_offsets"]
        header[names[1]]["data_offsets"] = [begin - 2, end - 2]

    change_header(sharded / "b.safetensors", overlap)
    message = refusal(sharded.parent)
    assert "b.safetensors is truncated or damaged" in message and "the one before it ends at" in message


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    tensors = load_file(sharded / "a.safetensors")
    name = sorted(tensors)[0]
    save_file({**load_file(sharded / "b.safetensors"), name: tensors[name]}, sharded / "b.safetensors")
    assert f"{name!r} is in both a.safetensors and" in refusal(sharded.parent)


def test_an_index_that_places_a_tensor_in_another_shard_is_refused(sharded: Path) -> None:
    change_placement(sharded, lambda placement: placement.update({"proj_out.weight": "a.safetensors"}))
    change_placement(sharded, lambda placement: placement.update({"proj_out.bias": "b.safetensors"}))
    assert "places 'proj_out." in (message := refusal(sharded.parent)) and "but it is in" in message


def test_an_index_that_names_a_tensor_no_shard_holds_is_refused(sharded: Path) -> None:
    change_placement(sharded, lambda placement: placement.update({"proj_out.scale": "a.safetensors"}))
    assert "places 'proj_out.scale' in 'a.safetensors', which does not hold it" in refusal(sharded.parent)


def test_a_tensor_that_the_index_does_not_name_is_refused(sharded: Path) -> None:
    change_placement(sharded, lambda placement: placement.pop("proj_out.weight"))
    assert f"holds 'proj_out.weight', which {INDEX} does not name" in refusal(sharded.parent)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a.safetensors"]}])
def test_an_index_without_shards_is_refused(sharded: Path, content: object) -> None:
    (sharded / INDEX).write_text(json.dumps(content))
    assert "names no shards" in refusal(sharded.parent)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["norm_out.linear.bias", "single_transformer_blocks.0.proj_out.weight"])
def test_a_weight_that_is_not_finite_is_named_with_its_place(copy: Path, name: str, value: float) -> None:
    tensors = load_file(copy / WEIGHTS)
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, copy / WEIGHTS)
    last = [n - 1 for n in tensors[name].shape]
    assert f"{name!r} holds {value} at {last}" in refusal(copy)


def test_weights_that_were_changed_after_their_sums_are_damaged_rather_than_not_finite(copy: Path) -> None:
    write_sums(copy)
    tensors = load_file(copy / WEIGHTS)
    tensors["proj_out.bias"][0] = np.nan
    save_file(tensors, copy / WEIGHTS)
    assert "was changed or damaged" in refusal(copy)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda k: k.__name__)
def test_every_finite_number_passes_and_the_others_are_found_beyond_a_chunk(tmp_path: Path, kind: type) -> None:
    largest = ml_dtypes.finfo(kind).max
    values = np.array([0, -0.0, 1, largest, -largest, ml_dtypes.finfo(kind).smallest_subnormal], kind)
    count = 2 * CHUNK // values.itemsize
    name = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}[kind.__name__]

    def write(array: np.ndarray) -> Path:
        entries = {"ids": ("I64", np.array([-1, 1 << 62])), "w": (name, array)}
        header, data = {}, b""
        for key, (kind_name, part) in entries.items():
            offsets = [len(data), len(data) + part.nbytes]
            header[key] = {"dtype": kind_name, "shape": list(part.shape), "data_offsets": offsets}
            data += part.tobytes()
        text = json.dumps(header).encode()
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        return tmp_path / "x.safetensors"

    array = np.resize(values, (count // 64 + 1, 64))
    assert digest_and_fault(write(array))[1] is None
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        array[-1, 5] = bad
        fault = digest_and_fault(write(array))[1]
        assert fault is not None and fault.startswith("'w' holds") and fault.endswith(f"at [{len(array) - 1}, 5]")


@pytest.mark.parametrize(
    ("quantisation", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantization_config of bitsandbytes"),
        ({"quant_method": "gguf"}, "quantization_config of gguf"),
        ({}, "(quantization_config)"),
    ],
)
@pytest.mark.parametrize("module", ["transformer", "text_encoder_2"])
def test_a_config_that_says_that_weights_are_quantised_is_refused(
    copy: Path, module: str, quantisation: dict, words: str
) -> None:
    config = copy / module / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": quantisation}))
    message = refusal(copy)
    assert words in message and f"{module}/config.json" in message and "give the 16-bit model" in message


def test_a_config_with_an_empty_quantisation_is_no_quantised_one(copy: Path) -> None:
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": None}))
    open_source(str(copy))


NAME = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ({f"{NAME}.wscales": np.ones(4, np.float16), f"{NAME}.qweight": np.ones(4, np.int8)}, "as nunchaku writes it"),
        ({f"{NAME}.weight.absmax": np.ones(4, np.float32), f"{NAME}.weight": np.ones(4, np.uint8)}, "bitsandbytes"),
        ({f"{NAME}.SCB": np.ones(4, np.float32), f"{NAME}.weight": np.ones(4, np.int8)}, "bitsandbytes"),
        ({f"{NAME}.qweight": np.ones(4, np.int32), f"{NAME}.qzeros": np.ones(4, np.int32)}, "GPTQ or AWQ"),
        ({f"{NAME}.qweight": np.ones(4, np.int32)}, "is I32, where 16 or 32 bits"),
        ({f"{NAME}.weight": np.ones(4, ml_dtypes.float8_e4m3fn)}, "is F8_E4M3, where 16 or 32 bits"),
        ({f"{NAME}.weight": np.ones(4, np.uint8)}, "is U8, where 16 or 32 bits"),
        ({"scaled_fp8": np.ones(0, ml_dtypes.float8_e4m3fn)}, "as FP8 writes it"),
    ],
    ids=["nunchaku", "bitsandbytes-4", "bitsandbytes-8", "gptq", "int32", "fp8", "uint8", "fp8-scaled"],
)
def test_tensors_that_another_tool_has_quantised_are_refused(copy: Path, added: dict, words: str) -> None:
    tensors = {n: torch.from_numpy(a) for n, a in load_file(copy / WEIGHTS).items() if not n.startswith(NAME)}
    for name, array in added.items():
        eight = array.dtype == ml_dtypes.float8_e4m3fn
        tensors[name] = torch.from_numpy(array.view(np.uint8) if eight else array)
        tensors[name] = tensors[name].view(torch.float8_e4m3fn) if eight else tensors[name]
    save_torch(tensors, copy / WEIGHTS)
    message = refusal(copy)
    assert "was quantised already" in message and words in message and next(iter(added)).split(".")[0] in message


@pytest.mark.parametrize("kind", ["F4", "F8_E8M0"])
def test_a_packed_type_is_refused_by_its_name(copy: Path, kind: str) -> None:
    change_header(copy / WEIGHTS, lambda header: header["proj_out.weight"].update(dtype=kind))
    assert f"quantised already ('proj_out.weight' is {kind})" in refusal(copy)


def test_a_quantised_file_alone_is_not_told_to_be_converted(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "flux-Q4_K_S.gguf").write_bytes(b"GGUF")
    assert "was quantised already (GGUF)" in refusal(tmp_path / "flux-Q4_K_S.gguf")
    save_file({"a.qweight": np.ones(2, np.int8), "a.wscales": np.ones(2, np.float16)}, tmp_path / "svdq.safetensors")
    assert "nunchaku" in refusal(tmp_path / "svdq.safetensors")
    (copy / WEIGHTS).rename((copy / WEIGHTS).with_suffix(".gguf"))
    assert "was quantised already (GGUF)" in refusal(copy)


def test_headers_are_refused_before_the_weights_are_read_through(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.digests.digest_and_fault", lambda file: pytest.fail("weights were read"))
    (copy / "vae" / "config.json").write_text(json.dumps({"quantization_config": {}}))
    with pytest.raises(UserError, match="quantised already"):
        open_source(str(copy))
