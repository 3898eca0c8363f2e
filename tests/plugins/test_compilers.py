"""Which compiler makes which cubin, what is cached, and how cubins are packed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from plugins import compilers, resources
from plugins.architectures import ARCHITECTURES, find
from plugins.compilers import Compiler
from plugins.errors import PluginError
from plugins.fatbin import pack
from tests.plugins.toolchain import STAND_IN, compiler_for, needs_fatbinary, number, packed_images

NVRTC_12_6 = Compiler("NVRTC", (12, 6), Path("libnvrtc.so.12"))
NVCC_12_6 = Compiler("nvcc", (12, 6), Path("nvcc"))
NVCC_13_0 = Compiler("nvcc", (13, 0), Path("nvcc"))
EM_CUDA = 190


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SVDQ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The stand-in's kernels.cu, in a directory that may be written."""
    shutil.copytree(STAND_IN, tmp_path / "kernels")
    return tmp_path / "kernels" / "kernels.cu"


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda r: r.name)
def test_jetpack_6_gets_kernels_of_cuda_12_and_thor_of_cuda_13(row: compilers.Architecture) -> None:
    chosen = compilers.choose(row, [NVRTC_12_6, NVCC_13_0])
    assert chosen == (NVRTC_12_6 if row.driver == 12 else NVCC_13_0)


def test_a_cuda_12_toolkit_serves_without_nvrtc() -> None:
    assert compilers.choose(find("87"), [NVCC_12_6]) is NVCC_12_6


def test_newer_kernels_than_the_oldest_driver_loads_are_refused_with_what_to_install() -> None:
    with pytest.raises(
        PluginError, match=r"sm_87 needs a compiler of CUDA 12.* here is nvcc 13.0: pip install 'nvidia-c"
    ):
        compilers.choose(find("87"), [NVCC_13_0])
    with pytest.raises(
        PluginError, match=r"sm_110f needs a compiler of CUDA 13.* here is NVRTC 12.6: .*CUDA 13 toolkit"
    ):
        compilers.choose(find("110f"), [NVRTC_12_6])
    with pytest.raises(PluginError, match="here is no CUDA compiler"):
        compilers.choose(find("80"), [])


def test_a_known_driver_admits_the_compilers_up_to_its_version() -> None:
    assert compilers.choose(find("87"), [NVCC_13_0], driver=13) is NVCC_13_0
    with pytest.raises(PluginError, match="drivers of CUDA 12"):
        compilers.choose(find("120f"), [NVCC_13_0], driver=12)


def test_nvcc_is_found_by_cuda_home_before_path_and_a_broken_one_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (("home", "echo release 12.4, V12.4.1"), ("path", "echo release 11.8,"), ("broken", "exit 1")):
        path = tmp_path / name / "bin" / "nvcc"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path' / 'bin'}:/usr/bin:/bin")
    found = [c for c in compilers.available() if tmp_path in c.path.parents]
    assert [(c.version, c.path.parent.parent.name) for c in found] == [((12, 4), "home"), ((11, 8), "path")]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "broken"))
    assert not [c for c in compilers.available() if "broken" in c.path.parts]


@pytest.mark.parametrize("name", ["87", "90a", "110f"])
def test_a_cubin_is_for_its_architecture_and_its_log_tells_the_resources(name: str, source: Path) -> None:
    made = compilers.cubin(find(name), compiler_for(name), source)
    assert made.cubin[:4] == b"\x7fELF"
    assert int.from_bytes(made.cubin[18:20], "little") == EM_CUDA
    kernels = {r.kernel: r for r in resources.read(made.log)}
    assert set(kernels) == {"svdq_scale", "svdq_reverse"}
    assert kernels["svdq_scale"].shared == 0 and kernels["svdq_reverse"].shared == 512
    assert all(0 < k.registers < 64 and k.spilled == k.stack == 0 for k in kernels.values())


def test_a_spill_shows_in_the_log(source: Path) -> None:
    loads = "".join(f"float const v{i} = values[{i}];" for i in range(160))
    stores = "".join(f"values[{i}] = v{i} * v{159 - i};" for i in range(160))
    body = f"float volatile* values = p.values + i; {loads} {stores}"  # 160 numbers, 64 registers
    text = source.read_text().replace("__launch_bounds__(128) svdq_scale", "__launch_bounds__(1024) svdq_scale")
    source.write_text(text.replace("if (i < p.count) p.values[i] *= kScale;", body))
    for name in ("87", "110f"):
        kernels = resources.read(compilers.cubin(find(name), compiler_for(name), source).log)
        assert {k.kernel for k in kernels if k.spilled and k.stack} == {"svdq_scale"}, name


def test_a_log_without_kernels_is_no_proof() -> None:
    with pytest.raises(ValueError, match="0 kernels"):
        resources.read("nothing of note\n")
    with pytest.raises(ValueError, match="ends within 'a'"):
        resources.read("ptxas info : Compiling entry function 'a' for 'sm_87'\n")


def test_kernels_are_compiled_once_and_again_when_an_included_file_changes(
    monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    compiled = []

    def compile(self: Compiler, source: Path, architecture: compilers.Architecture) -> tuple[bytes, str]:
        compiled.append((architecture.name, str(self)))
        return b"cubin", "log"

    monkeypatch.setattr(Compiler, "compile", compile)
    for _ in range(2):
        assert compilers.cubin(find("87"), NVRTC_12_6, source) == compilers.Compiled(b"cubin", "log")
    compilers.cubin(find("87"), NVCC_12_6, source)
    compilers.cubin(find("86"), NVRTC_12_6, source)
    (source.parent / "scale.cuh").write_text("constexpr float kScale = 3.0f;")
    compilers.cubin(find("87"), NVRTC_12_6, source)
    assert compiled == [("87", "NVRTC 12.6"), ("87", "nvcc 12.6"), ("86", "NVRTC 12.6"), ("87", "NVRTC 12.6")]


@pytest.mark.parametrize("name", ["87", "110f"])
def test_an_error_in_the_source_is_shown_and_nothing_is_kept(name: str, source: Path) -> None:
    source.write_text(source.read_text().replace("kScale;", "kScal;"))
    with pytest.raises(PluginError, match=r'cannot compile .*kernels.cu for sm_\w+:[^$]*"kScal" is undefined'):
        compilers.cubin(find(name), compiler_for(name), source)
    source.write_text(source.read_text().replace("kScal;", "kScale;"))
    assert compilers.cubin(find(name), compiler_for(name), source).cubin


def test_the_kernels_include_files_of_their_own_directory_only() -> None:
    """Else the cache would miss their changes, and NVRTC would miss them."""
    directory = compilers.SOURCE.parent
    for file in directory.iterdir():
        for line in file.read_text(encoding="utf-8").splitlines():
            if match := re.match(r'\s*#include ["<]([^">]+)[">]', line):
                own = (directory / match[1]).exists() and "/" not in match[1]
                host = match[1] in ("cstdint", "../on_cpu/ptx.h")  # not seen by NVRTC
                assert own or host, f"{file.name} includes {match[1]}"


def test_a_fat_binary_has_every_cubin_and_drivers_before_12_4_can_unpack_it(source: Path) -> None:
    needs_fatbinary()
    rows = [find(name) for name in ("80", "87", "90a", "110f")]
    cubins = {row.name: compilers.cubin(row, compiler_for(row.name), source).cubin for row in rows}
    images = packed_images(pack(cubins))
    assert sorted(images) == sorted(number(row) for row in rows)
    for flags, _ in images.values():
        assert not flags & 0x8000, "zstd: needs a driver of CUDA 12.4"
    for row in rows:  # small ones stay as they are
        flags, stored = images[number(row)]
        assert flags & 0x2000 or stored[: len(cubins[row.name])] == cubins[row.name]


def test_without_the_packing_tool_one_cubin_is_the_image_and_several_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("plugins.fatbin.fatbinary", lambda: None)
    assert pack({}) == b""
    assert pack({"87": b"cubin"}) == b"cubin"
    with pytest.raises(PluginError, match="2 architectures needs CUDA's fatbinary"):
        pack({"87": b"a", "110f": b"b"})
