"""The table of devices, and which of them this machine is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from artifact.errors import UserError
from engines.targets import NAMES, TARGETS, Target, auto, find

NUMBERS = ("memory_gb", "bandwidth_gb_s", "fp16_tflops", "int8_tops", "power_w")


def no_gpu() -> str:
    raise FileNotFoundError("nvidia-smi")


def jetson(root: Path, model: str) -> Path:
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text("# R36", encoding="utf-8")
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_bytes(model.encode() + b"\0")
    return root


def test_names_are_unique_and_found() -> None:
    assert len(set(NAMES)) == len(NAMES) == 10
    assert all(find(n).name == n for n in NAMES)


@pytest.mark.parametrize("target", TARGETS[1:], ids=NAMES[1:])
def test_a_row_is_complete_and_consistent(target: Target) -> None:
    assert all(getattr(target, name) is not None for name in NUMBERS)
    assert target.unverified <= {f.name for f in fields(target)}
    assert all(getattr(target, name) is not None for name in target.unverified)
    assert ("int4" in target.formats) == (target.int4_tops is not None) == (80 <= target.sm <= 89)
    assert ("nvfp4" in target.formats) == (target.fp4_tflops is not None) == (target.sm >= 100)
    assert bool(target.jetpacks) == target.shared_memory == (target.sm in (87, 110))
    assert all(tuple(map(int, j.tensorrt.split("."))) >= (10, 3) for j in target.jetpacks)


def test_the_system_keeps_its_share_of_a_jetsons_memory() -> None:
    assert find("orin-nano").usable_gb == 6.0
    assert find("h200").usable_gb == 141
    assert find("cpu").usable_gb is None


def test_an_unknown_target_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="no target 'orin-nanno': did you mean 'orin-nano'"):
        find("orin-nanno")
    with pytest.raises(UserError, match="known are 'cpu', 'orin-nano'"):
        find("zzz")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "orin-nano"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "agx-orin"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "thor-t5000"),
        ("NVIDIA Jetson Xavier NX", "cpu"),
    ],
)
def test_auto_knows_a_jetson_by_its_model(tmp_path: Path, model: str, name: str) -> None:
    assert auto(jetson(tmp_path, model), no_gpu).name == name


@pytest.mark.parametrize(
    ("listing", "name"),
    [
        ("NVIDIA GeForce RTX 4090, 8.9\n", "rtx-40"),
        ("NVIDIA H200, 9.0\nNVIDIA H200, 9.0\n", "h200"),
        ("NVIDIA GeForce RTX 5070, 12.0", "rtx-50"),
        ("Tesla P100, 6.0", "cpu"),
        ("", "cpu"),
        ("No devices were found", "cpu"),
    ],
)
def test_auto_knows_a_card_by_its_compute_capability(tmp_path: Path, listing: str, name: str) -> None:
    assert auto(tmp_path, lambda: listing).name == name


def test_auto_is_cpu_without_a_gpu_and_never_fails(tmp_path: Path) -> None:
    assert auto(tmp_path, no_gpu).name == "cpu"
    jetson(tmp_path, "")
    (tmp_path / "proc/device-tree/model").unlink()
    assert auto(tmp_path, no_gpu).name == "cpu"
    assert find("auto").name in NAMES
