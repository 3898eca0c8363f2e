"""The table of devices, and which of them this machine is."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pytest

from artifact.errors import UserError
from engines import targets
from engines.targets import FIGURES, NAMES, TARGETS, Target, auto, check_preset, find, jetson_linux, shown

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
        ("NVIDIA GeForce RTX 4060, 8.9, 8188", "rtx-40"),
        ("NVIDIA A100-SXM4-80GB, 8.0, 81920", "cpu"),
        ("Tesla P100, 6.0", "cpu"),
        ("", "cpu"),
        ("No devices were found", "cpu"),
    ],
)
def test_auto_knows_a_card_by_its_compute_capability(tmp_path: Path, listing: str, name: str) -> None:
    assert auto(tmp_path, lambda: listing).name == name


@pytest.mark.parametrize(
    ("model", "kilobytes", "memory_gb", "side"),
    [
        ("NVIDIA Jetson Orin NX", 15_656_000, 16, 1024),  # less what the firmware keeps
        ("NVIDIA Jetson Orin NX", 7_620_000, 7.8, 512),
        ("NVIDIA Jetson Orin Nano", 7_620_000, 8, 512),
        ("NVIDIA Jetson Orin Nano", 3_650_000, 3.7, 512),
        ("NVIDIA Jetson AGX Orin", 31_350_000, 32.1, 1024),
    ],
)
def test_a_smaller_module_is_its_row_with_its_own_memory(
    tmp_path: Path, model: str, kilobytes: int, memory_gb: float, side: int
) -> None:
    jetson(tmp_path, model)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {kilobytes} kB\nMemFree: 1 kB\n")
    found = auto(tmp_path, no_gpu)
    assert (found.memory_gb, found.max_side) == (memory_gb, side)
    if found != find(found.name):
        assert found.title == f"{find(found.name).title}, with {memory_gb} GB"
        assert shown(found, "memory_gb") == f"{memory_gb:g}" and shown(found, "fp16_tflops").endswith("(?)")


def test_a_smaller_card_is_its_series_with_its_own_memory(tmp_path: Path) -> None:
    small, large = (auto(tmp_path, lambda m=m: f"NVIDIA GeForce RTX, 8.9, {m}") for m in (8188, 24564))
    assert large == find("rtx-40")
    assert (small.memory_gb, small.usable_gb, small.max_side, small.name) == (8.6, 8.6, 512, "rtx-40")


def test_auto_is_cpu_without_a_gpu_and_never_fails(tmp_path: Path) -> None:
    assert auto(tmp_path, no_gpu).name == "cpu"
    jetson(tmp_path, "")
    (tmp_path / "proc/device-tree/model").unlink()
    assert auto(tmp_path, no_gpu).name == "cpu"
    assert find("auto").name in NAMES


@pytest.mark.parametrize("target", TARGETS[1:], ids=NAMES[1:])
def test_every_figure_has_a_source(target: Target) -> None:
    assert all(target.sources[name] for name in FIGURES if getattr(target, name) is not None)


def test_an_uncertain_figure_is_marked_where_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(find("orin-nano"), "fp16_tflops") == "17 (?)"
    assert shown(find("h200"), "fp16_tflops") == "989"
    assert shown(find("h200"), "int4_tops") == "–"
    targets.app(["agx-orin"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "42.5 (?)" in out and "204.8 (?)" not in out
    assert "JetPack 6.2: CUDA 12.6, TensorRT 10.3" in out
    assert "bandwidth_gb_s, power_w: Jetson AGX Orin data sheet" in out
    targets.app([], standalone_mode=False)
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in NAMES[1:])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("rtx-50", "thor-t4000", "thor-t5000")])
def test_fp4_is_refused_where_there_are_no_instructions_and_the_alternative_is_one_that_runs(name: str) -> None:
    instead = "svdq-w4a8" if name == "h200" else "svdq-int4"
    with pytest.raises(UserError, match=f"has no FP4 instructions for svdq-nvfp4.*build {instead} instead"):
        check_preset(find(name), "svdq-nvfp4")
    check_preset(find(name), instead)
    check_preset(find("thor-t5000"), "svdq-nvfp4")


def test_int4_is_widened_where_it_is_not_native() -> None:
    assert check_preset(find("agx-orin"), "svdq-int4") == check_preset(find("rtx-40"), "int4-rtn") == ""
    for name in ("h200", "thor-t5000", "rtx-50"):
        assert "its codes widened to 8 bits" in check_preset(find(name), "svdq-int4")
        assert check_preset(find(name), "svdq-w4a8") == check_preset(find(name), "fp16") == ""


def test_a_gpu_without_kernels_gets_16_bits_only() -> None:
    old = replace(find("rtx-30"), name="old", title="An old card", compute_capability="7.5")
    with pytest.raises(UserError, match="no kernels for An old card.*build fp16 for it"):
        check_preset(old, "svdq-int4")
    assert check_preset(old, "fp16") == check_preset(find("cpu"), "svdq-int4") == ""


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "36.4.3"),
        ("# R38", "38"),
        ("nonsense", ""),
    ],
)
def test_the_release_of_jetson_linux_is_read(tmp_path: Path, text: str, release: str) -> None:
    assert jetson_linux(tmp_path) == ""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(text, encoding="utf-8")
    assert jetson_linux(tmp_path) == release


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** device) { *device = (void*)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void* device, char* name, unsigned size) { strncpy(name, "NVIDIA H200", size); return 0; }
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* memory) {
    memory[0] = 143771ull << 20;
    return device == (void*)1 ? 0 : 3;  // the second one does not tell
}
int nvmlDeviceGetCudaComputeCapability(void* device, int* major, int* minor) {
    *major = 9;
    *minor = (int)(long)device - 1;
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_cards_are_listed_by_nvml_without_nvidia_smi(tmp_path: Path) -> None:
    library = tmp_path / "libnvml.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=NVML, text=True, check=True)
    found = targets._nvml(str(library))
    assert found == "NVIDIA H200, 9.0, 143771\nNVIDIA H200, 9.1"
    assert auto(tmp_path, lambda: found).name == "h200"
    assert targets._nvml(str(tmp_path / "none.so")) == ""
