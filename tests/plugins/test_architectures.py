"""The table of architectures agrees with the targets, with CMake's list and with itself."""

from __future__ import annotations

import re

import pytest

from engines import targets
from plugins.architectures import AARCH64, ARCHITECTURES, TARGETS, X86_64, find, for_capability, of_machine
from plugins.errors import PluginError
from plugins.library import SOURCES

GPUS = [t for t in targets.TARGETS if t.compute_capability]


def test_no_compute_capability_has_two_cubins() -> None:
    capabilities = [c for row in ARCHITECTURES for c in row.capabilities]
    assert len(set(capabilities)) == len(capabilities)
    assert len({row.name for row in ARCHITECTURES}) == len(ARCHITECTURES)


def test_the_targets_are_those_of_the_engines() -> None:
    assert set(TARGETS) == {t.name for t in GPUS}


@pytest.mark.parametrize("target", GPUS, ids=lambda t: t.name)
def test_a_target_has_kernels_for_its_gpu_and_a_library_for_its_machine(target: targets.Target) -> None:
    row = TARGETS[target.name]
    architecture = for_capability(row.capability)
    assert row.capability == target.compute_capability
    assert row.machine == (AARCH64 if target.shared_memory else X86_64)
    assert architecture in of_machine(row.machine)
    assert architecture.native_int4 == ("int4" in target.formats)


@pytest.mark.parametrize("target", [t for t in GPUS if t.jetpacks], ids=lambda t: t.name)
def test_a_jetson_s_oldest_jetpack_loads_its_kernels(target: targets.Target) -> None:
    oldest = min(int(j.cuda.split(".")[0]) for j in target.jetpacks)
    assert for_capability(TARGETS[target.name].capability).driver <= oldest


def test_architectures_are_found_by_any_spelling() -> None:
    assert find("87") is find("sm_87") is find("SM87") is for_capability("8.7")


def test_an_unknown_architecture_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(PluginError, match="'sm_88'.*did you mean.*'8"):
        find("sm_88")


@pytest.mark.parametrize("capability", ["7.5", "8.8", "13.0"])
def test_a_gpu_without_kernels_is_refused(capability: str) -> None:
    with pytest.raises(PluginError, match=f"capability {capability}, only for 8.0, 8.6"):
        for_capability(capability)


def test_a_desktop_library_has_no_jetson_kernels_and_no_other_machine_is_known() -> None:
    assert "87" not in {row.name for row in of_machine(X86_64)}
    assert {row.name for row in of_machine(AARCH64)} == {row.name for row in ARCHITECTURES}
    with pytest.raises(PluginError, match="not for 'riscv64'"):
        of_machine("riscv64")


def test_cmake_knows_the_same_architectures() -> None:
    script = (SOURCES / "cmake" / "fatbin.cmake").read_text(encoding="utf-8")
    rows = re.search(r"set\(svdq_known (.+)\)", script)
    jetson = re.search(r"set\(svdq_jetson (.+)\)", script)
    assert rows and jetson
    known = dict(pair.split() for pair in re.findall(r'"([^"]+)"', rows[1]))
    assert known == {row.name: "{}.{}".format(*row.first_cuda) for row in ARCHITECTURES}
    assert jetson[1].split() == [row.name for row in ARCHITECTURES if row.machines == (AARCH64,)]
