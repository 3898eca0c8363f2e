"""`python -m plugins.build` as a user runs it; compilers are stand-ins, CMake and the C++ compiler are real."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins import build, compilers, toolchain
from plugins.architectures import AARCH64, TARGETS, X86_64, Architecture, for_capability
from plugins.compilers import Compiler
from plugins.device import Device
from plugins.errors import PluginError
from tests.plugins.toolchain import needs_cross_compiler

NVRTC, NVCC = Compiler("NVRTC", (12, 6), Path("libnvrtc.so.12")), Compiler("nvcc", (13, 0), Path("nvcc"))
LOG = """\
ptxas info    : Compiling entry function 'svdq_{name}' for 'sm_87'
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 77 registers, 512 bytes smem, 368 bytes cmem[0]
"""
HERE = "h200" if platform.machine() == X86_64 else "agx-orin"
needs_cmake = pytest.mark.skipif(
    not (shutil.which("c++") and (shutil.which("cmake") or Path(sys.executable).with_name("cmake").exists())),
    reason="CMake or a C++ compiler is missing: pip install cmake; apt-get install g++",
)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both compilers are here and take no time; the cache is this test's own; there is no TensorRT."""

    def compile(self: Compiler, source: Path, architecture: Architecture) -> tuple[bytes, str]:
        return f"cubin of {architecture.name} by {self}".encode(), LOG.format(name=architecture.name)

    monkeypatch.setattr(Compiler, "compile", compile)
    monkeypatch.setattr(compilers, "available", lambda: [NVRTC, NVCC])
    monkeypatch.setattr(compilers, "fatbinary", lambda: None)
    monkeypatch.setattr("plugins.library.pack", lambda cubins: b"\n".join(cubins.values()))
    monkeypatch.setenv("SVDQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SVDQ_LIBCUDA", "/nowhere/libcuda.so.1")
    monkeypatch.setenv("TensorRT_ROOT", str(tmp_path / "nowhere"))


def run(*arguments: object) -> None:
    build.app([str(a) for a in arguments], standalone_mode=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence with which the command ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err.removeprefix("error: ").strip()


def shown(out: str, word: str) -> str:
    found = re.search(rf"^  {word} +(.*)$", out, re.MULTILINE)
    assert found, out
    return found[1]


@needs_cmake
def test_a_target_s_library_lies_in_out_and_is_described(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run("--target", HERE, "--out", tmp_path / "out", "--tensorrt", "off")
    path = tmp_path / "out" / "libsvdq_linear.so"
    out = capsys.readouterr().out
    assert str(path) in out and shown(out, "machine") == platform.machine()
    name = for_capability(TARGETS[HERE].capability).name
    assert shown(out, "kernels") == f"sm_{name} (NVRTC 12.6)"
    assert shown(out, "sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shown(out, "size") == f"{path.stat().st_size / 2**20:.2f} MiB"
    assert shown(out, "TensorRT") == "no shell: --tensorrt off"
    assert f"cubin of {name} by NVRTC 12.6".encode() in path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@needs_cmake
def test_without_tensorrt_s_headers_the_rest_is_built_and_that_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run("--target", HERE, "--out", tmp_path)
    assert shown(capsys.readouterr().out, "TensorRT").startswith(
        "no shell: There are no headers of TensorRT 10 in $TensorRT"
    )
    assert (tmp_path / "libsvdq_linear.so").is_file()
    assert "set TensorRT_ROOT" in refused(capsys, "--target", HERE, "--out", tmp_path, "--tensorrt", "10")


@needs_cmake
def test_quiet_says_nothing_and_verbose_says_what_kernels_take(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run("--target", HERE, "--out", tmp_path, "--quiet")
    assert capsys.readouterr() == ("", "")
    run("--target", HERE, "--out", tmp_path, "--verbose")
    row = re.search(r"svdq_\S+ +(\d+) +(\d+) +(\d+)", capsys.readouterr().out)
    assert row and row.groups() == ("77", "512", "16")


@needs_cmake
def test_orin_s_library_is_cross_compiled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    needs_cross_compiler()
    run("--target", "orin-nano", "--out", tmp_path)
    out = capsys.readouterr().out
    assert (shown(out, "machine"), shown(out, "kernels")) == (AARCH64, "sm_87 (NVRTC 12.6)")


@needs_cmake
def test_all_makes_one_library_per_machine_and_names_what_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_cross_compiler()
    monkeypatch.setattr(compilers, "available", lambda: [NVCC])
    run("--target", "all", "--out", tmp_path)
    out = capsys.readouterr().out
    desktop = (tmp_path / X86_64 / "libsvdq_linear.so").read_bytes()
    jetson = (tmp_path / AARCH64 / "libsvdq_linear.so").read_bytes()
    assert b"cubin of 120f" in desktop and b"cubin of 110f" not in desktop and b"cubin of 110f" in jetson
    assert "left out  sm_87: sm_87 needs a compiler of CUDA 12" in out


@needs_cmake
def test_all_goes_on_without_a_cross_compiler_and_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() != X86_64:
        pytest.skip("this machine needs no cross compiler")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == toolchain.CROSS_COMPILER else which(name))
    run("--target", "all", "--out", tmp_path)
    assert "left out: aarch64: The C++ compiler aarch64-linux-gnu-g++ for aarch64 is missing" in capsys.readouterr().out
    assert [p.name for p in tmp_path.glob("*/*.so")] == ["libsvdq_linear.so"]


def test_all_is_an_error_where_nothing_can_be_built(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "available", list)
    assert "Nothing could be built; left out: x86_64: sm_80 needs" in refused(
        capsys, "--target", "all", "--out", tmp_path
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--target", "agx-orn"), "There is no target 'agx-orn': did you mean 'agx-orin'?"),
        (("--target", "cpu"), "There is no target 'cpu': known are 'orin-nano'.*'all', 'local'"),
        (("--target", "h200", "--tensorrt", "9"), "There is no --tensorrt '9': known are 'auto', '10', '8', 'off'"),
        (("--target", "local"), r"There is no GPU here for --target local: name a target \(orin-nano, .*, all\)"),
        ((), "There is no GPU here for --target local"),
    ],
)
def test_a_wrong_flag_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.match(sentence, refused(capsys, *arguments))


def test_a_target_whose_compiler_is_missing_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "available", lambda: [NVCC])
    sentence = refused(capsys, "--target", "h200")
    assert sentence.startswith("sm_90a needs") and "nvcc 13.0: pip install 'nvidia-cuda-nvrtc-cu12==12.6.*'" in sentence


@needs_cmake
def test_a_place_that_cannot_be_written_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "choose another --out" in refused(capsys, "--target", HERE, "--out", tmp_path / "file")
    (tmp_path / "libsvdq_linear.so").mkdir()
    assert "choose another --out" in refused(capsys, "--target", HERE, "--out", tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        run("--target", "agx-orn", "--debug")


class Gpu:
    """A device as far as --target local asks."""

    capability = "8.7"

    class driver:  # noqa: N801
        version = staticmethod(lambda: (13, 2))

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def orin_with_jetpack_7(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(build, "Device", Gpu)
    yield
    assert Device is not Gpu


@needs_cmake
def test_local_takes_the_compiler_that_its_own_driver_allows(
    orin_with_jetpack_7: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "available", lambda: [NVCC])
    run("--out", tmp_path, "-v")
    assert shown(capsys.readouterr().out, "kernels") == "sm_87 (nvcc 13.0)"
