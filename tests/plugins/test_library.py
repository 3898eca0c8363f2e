"""The shared library: what it exports, which machines load it, and that the cache makes it once and whole."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugins import cache, compilers, library, toolchain
from plugins.architectures import AARCH64, X86_64, find
from plugins.errors import PluginError
from tests.plugins.toolchain import (
    compiler_for,
    needs_cross_compiler,
    needs_fatbinary,
    needs_tensorrt,
    packed_images,
    stand_in_sources,
)

ROOT = Path(__file__).resolve().parents[2]
HEADER = (library.SOURCES / "svdq_linear" / "launch.h").read_text(encoding="utf-8")
NO_DRIVER = 3
# What JetPack 6 (Ubuntu 22.04) has.
NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0)}

pytestmark = pytest.mark.skipif(
    not (shutil.which("c++") and (shutil.which("cmake") or Path(sys.executable).with_name("cmake").exists())),
    reason="CMake or a C++ compiler is missing: pip install cmake; apt-get install g++",
)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SVDQ_CACHE", str(tmp_path / "cache"))
    return cache.root()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> library.Library:
    """A library of this machine without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVDQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        return library.find_or_build(architectures=())


def symbols(path: Path) -> tuple[set[str], set[str]]:
    """Exported names, and the versions of what is needed of other libraries."""
    out = subprocess.run(["objdump", "-T", str(path)], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in out.splitlines() if re.match(r"^[0-9a-f]{8,} ", line)]
    exported = {line[-1] for line in lines if "*UND*" not in line}
    return exported, set(re.findall(r"\(?((?:GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+)", out))


def assert_jetpack_6_loads(path: Path) -> None:
    for version in symbols(path)[1]:
        name, number = version.split("_")
        assert tuple(map(int, number.split("."))) <= NEWEST[name], f"{path.name} needs {version}"


def test_it_exports_launch_h_and_nothing_else(plain: library.Library) -> None:
    declared = set(re.findall(r"^SVDQ_API .*?(svdq_\w+)\(", HEADER, re.MULTILINE))
    assert len(declared) == 11
    assert symbols(plain.path)[0] == declared


def test_it_loads_without_a_gpu_and_says_so(plain: library.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDQ_LIBCUDA", "/nowhere/libcuda.so.1")
    lib = ctypes.CDLL(str(plain.path))
    lib.svdq_status_text.restype = ctypes.c_char_p
    assert lib.svdq_tile_count() > 0
    assert lib.svdq_prepare() == NO_DRIVER
    assert b"libcuda.so.1" in lib.svdq_status_text(NO_DRIVER)


def test_it_is_described_as_it_is(plain: library.Library) -> None:
    assert plain.path.name == "libsvdq_linear.so" and plain.machine == platform.machine()
    assert plain.size == plain.path.stat().st_size and plain.architectures == () and plain.tensorrt == ""


@pytest.mark.parametrize("machine", [X86_64, AARCH64])
def test_jetpack_6_has_all_that_it_needs_of_the_system(machine: str, own_cache: Path) -> None:
    if machine != platform.machine():
        needs_cross_compiler()
    built = library.find_or_build(machine=machine, architectures=())
    elf = built.path.read_bytes()[:20]
    assert int.from_bytes(elf[18:20], "little") == {X86_64: 62, AARCH64: 183}[machine]
    assert_jetpack_6_loads(built.path)


def test_it_is_built_once_then_found(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = library.find_or_build(architectures=(), say=said.append)
    monkeypatch.setattr(library, "_cmake", None)
    assert library.find_or_build(architectures=(), say=said.append) == first
    assert said == [f"libsvdq_linear.so for {platform.machine()}"]


def test_every_source_and_every_option_makes_another_one(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = stand_in_sources(tmp_path)
    keys: list[str] = []
    monkeypatch.setattr(cache, "entry", lambda key, make: keys.append(key) or pytest.skip.Exception)

    def note(**options: Any) -> None:
        with pytest.raises(TypeError):  # there is nothing to open: only the key was asked for
            library.find_or_build(**{"architectures": (), "sources": sources, **options})

    note()
    note()
    assert keys[0] == keys[1]
    for name in ("CMakeLists.txt", "cmake/aarch64-linux-gnu.cmake", "svdq_linear/launch.cpp", "svdq_linear/launch.h",
                 "svdq_linear/kernels/tiles.h", "svdq_linear/fatbin.S.in"):  # fmt: skip
        with open(sources / name, "a") as f:
            f.write("\n")
        note()
    monkeypatch.setenv("CXXFLAGS", "-O1")
    note()
    if shutil.which(toolchain.CROSS_COMPILER):
        note(machine=AARCH64)
    monkeypatch.setattr(compilers, "available", lambda: [compilers.Compiler("nvcc", (12, 6), Path("nvcc"))])
    note(architectures=[find("87")])
    with open(sources / "svdq_linear" / "kernels" / "kernels.cu", "a") as f:
        f.write("\n")
    note(architectures=[find("87")])
    monkeypatch.setattr(compilers, "available", lambda: [compilers.Compiler("nvcc", (12, 8), Path("nvcc"))])
    note(architectures=[find("87")])
    assert len(set(keys)) == len(keys) - 1


def test_two_builds_are_bit_for_bit_the_same(plain: library.Library, own_cache: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another place"
    shutil.copytree(library.SOURCES, elsewhere, ignore=shutil.ignore_patterns("__pycache__"))
    assert library.find_or_build(architectures=(), sources=elsewhere).sha256 == plain.sha256


def test_two_processes_at_once_build_one_library(own_cache: Path) -> None:
    code = (
        "from plugins.library import find_or_build as f; print(f(architectures=(), say=lambda s: print('built')).path)"
    )
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in both]
    assert sorted(len(words) for words in said) == [1, 2]
    assert said[0][-1] == said[1][-1] and Path(said[0][-1]).is_file()


def test_a_failed_build_leaves_nothing_but_its_log(own_cache: Path, tmp_path: Path) -> None:
    sources = stand_in_sources(tmp_path)
    launcher = sources / "svdq_linear" / "launch.cpp"
    text = launcher.read_text()
    launcher.write_text(text + "\nint broken = undeclared_name;\n")
    with pytest.raises(PluginError, match=r"svdq_linear failed \(.*undeclared_name.*\): the whole log is (.*\.log)"):
        library.find_or_build(architectures=(), sources=sources)
    left = {path.suffix for path in own_cache.iterdir()}
    assert left == {".lock", ".log"}
    launcher.write_text(text)
    assert library.find_or_build(architectures=(), sources=sources).path.is_file()


def test_what_a_killed_build_left_is_swept_away(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library.find_or_build(architectures=())
    directory = first.path.parent
    half = directory.with_name(f"{directory.name}.partial")
    directory.rename(half)
    (half / "half-written").write_text("")
    again = library.find_or_build(architectures=())
    assert again == first and not half.exists() and not (directory / "half-written").exists()


def test_kernels_of_several_compilers_lie_in_one_library(own_cache: Path, tmp_path: Path) -> None:
    needs_fatbinary()
    for name in ("87", "110f"):
        compiler_for(name)
    needs_cross_compiler()
    sources = stand_in_sources(tmp_path)
    built = library.find_or_build(None, AARCH64, [find("87"), find("110f")], sources=sources)
    image = built.path.read_bytes()
    start = image.index(b"\x50\xed\x55\xba")  # a fat binary's first bytes
    assert set(packed_images(image[start:])) == {87, 110}
    assert start % 64 == 0 and built.architectures == ("87", "110f")


def test_architectures_that_cannot_be_compiled_are_left_out_and_named(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = compilers.Compiler("nvcc", (13, 0), Path("nvcc"))
    monkeypatch.setattr(compilers, "available", lambda: [nvcc])
    chosen, missing = library._compilers(X86_64, None, None)
    assert [a.name for a, _ in chosen] == ["100f", "120f"]
    assert set(missing) == {"80", "86", "89", "90a"} and "nvidia-cuda-nvrtc-cu12" in missing["86"]
    with pytest.raises(PluginError, match="sm_86 needs a compiler of CUDA 12"):  # asked for by name
        library.find_or_build(machine=X86_64, architectures=[find("120f"), find("86")])
    monkeypatch.setattr(compilers, "available", list)
    with pytest.raises(PluginError, match="sm_80 needs a compiler of CUDA 12"):
        library.find_or_build(machine=X86_64)


@pytest.mark.parametrize("archs", ["87", "90a;110f"])
def test_a_c_programmer_needs_cmake_and_nvcc_only(archs: str, tmp_path: Path) -> None:
    if not any(c.name == "nvcc" and c.version >= (13, 0) for c in compilers.available()):
        pytest.skip("nvcc of CUDA 13 is missing")
    build = tmp_path / "build"
    options = [f"-DSVDQ_ARCHS={archs}", "-DSVDQ_TENSORRT=OFF"]
    sources = stand_in_sources(tmp_path)
    subprocess.run([toolchain.cmake(), "-S", sources, "-B", build, *options], check=True, capture_output=True)
    subprocess.run([toolchain.cmake(), "--build", build], check=True, capture_output=True)
    image = (build / "libsvdq_linear.so").read_bytes()
    images = packed_images(image[image.index(b"\x50\xed\x55\xba") :])
    assert set(images) == {int(a.rstrip("af")) for a in archs.split(";")}
    assert not any(flags & 0x8000 for flags, _ in images.values()), "zstd: needs a driver of CUDA 12.4"


@pytest.mark.parametrize("major", [10, 8])
def test_the_shell_is_built_on_the_oldest_tensorrt_that_is_meant(major: int, own_cache: Path) -> None:
    headers = needs_tensorrt(major)
    built = library.find_or_build(major, architectures=())
    assert built.path.name == {10: "libsvdq_plugin.so", 8: "libsvdq_plugin_trt8.so"}[major]
    assert built.tensorrt == headers.version and built.tensorrt.split(".")[0] in ("8", "10", "11")
    exported = symbols(built.path)[0]
    assert {"svdq_enqueue"} | ({"getCreators"} if major == 10 else {"getPluginCreators"}) <= exported
    assert_jetpack_6_loads(built.path)


def write_headers(directory: Path, text: str) -> Path:
    directory.mkdir(parents=True)
    (directory / "NvInferVersion.h").write_text(text)
    (directory / "NvInferRuntime.h").write_text("")
    return directory


def test_headers_are_found_by_their_version(own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ten = "#define NV_TENSORRT_MAJOR 10 //!<\n#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n"
    newer = "".join(
        f"#define TRT_{part}_ENTERPRISE {number}\n#define NV_TENSORRT_{part} TRT_{part}_ENTERPRISE\n"
        for part, number in (("MAJOR", 11), ("MINOR", 1), ("PATCH", 0))
    )
    eight = ten.replace("MAJOR 10", "MAJOR 8").replace("MINOR 3", "MINOR 6")
    for version, text, include in (("10.3.0", ten, "include"), ("11.1.0", newer, "."), ("8.6.0", eight, "include")):
        place = tmp_path / version
        write_headers(place / include, text)
        monkeypatch.setenv("TensorRT_ROOT", str(place))
        wanted = 8 if version.startswith("8") else 10
        found = toolchain.tensorrt_headers(wanted)
        assert found.version == version and Path(found.directory).resolve() == (place / include).resolve()
        with pytest.raises(PluginError, match=rf"no headers of TensorRT {18 - wanted} in \$TensorRT_ROOT"):
            toolchain.tensorrt_headers(18 - wanted)


def test_a_fetched_header_with_another_hash_is_not_used(own_cache: Path) -> None:
    """An error page of a proxy, say; where there is a network the right ones come instead."""
    downloads = write_headers(own_cache / "tensorrt-10.3.0", "#define NV_TENSORRT_MAJOR 10\n<html>\n")
    try:
        found = toolchain.tensorrt_headers(10)
    except PluginError as e:
        assert "set TensorRT_ROOT" in str(e)
    else:
        if Path(found.directory) == downloads:
            assert "<html>" not in (downloads / "NvInferVersion.h").read_text()


def test_the_shells_need_no_more_headers_than_are_fetched() -> None:
    for version, count in (("10.3.0", 8), ("8.5.2", 6)):
        lines = (library.SOURCES / "cmake" / f"tensorrt-{version}.sha256").read_text().splitlines()
        assert len(lines) == count and all(re.fullmatch(r"[0-9a-f]{64}  NvInfer\w*\.h", line) for line in lines)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("cmake", "needs CMake 3.16 or later: pip install cmake"),
        ("c++", "C.* compiler c.* for .* is missing: apt-get install g"),
        (toolchain.CROSS_COMPILER, "for aarch64 is missing: apt-get install g..-aarch64-linux-gnu"),
    ],
)
def test_a_missing_tool_is_named_with_how_to_get_it(
    missing: str, sentence: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if missing == toolchain.CROSS_COMPILER and platform.machine() == AARCH64:
        pytest.skip("this machine needs no cross compiler")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else which(name) or f"/usr/bin/{name}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # no tools beside it
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(PluginError, match=sentence):
        library.find_or_build(machine=AARCH64 if missing == toolchain.CROSS_COMPILER else None, architectures=())


def test_an_x86_library_is_not_built_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: AARCH64)
    with pytest.raises(PluginError, match="is built on such a machine, and this is aarch64"):
        library.find_or_build(machine=X86_64, architectures=())


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SVDQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(PluginError, match=r"Cannot write the cache .*file/plugins .*SVDQ_CACHE"):
        library.find_or_build(architectures=())


class Registry:
    """TensorRT's plugin registry as far as loading goes."""

    def __init__(self, accepts: bool) -> None:
        self.accepts, self.loaded = accepts, list[str]()

    def load_library(self, path: str) -> None:
        self.loaded.append(path)

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        assert (name, version, namespace) == ("SvdqLinear", "1", "")
        return object() if self.loaded and self.accepts else None


def test_tensorrt_is_given_the_library_once(plain: library.Library) -> None:
    registry = Registry(accepts=True)
    library.load_into_tensorrt(registry, plain.path)
    library.load_into_tensorrt(registry, plain.path)
    assert registry.loaded == [str(plain.path)]


def test_a_library_that_tensorrt_refuses_is_an_error(plain: library.Library, tmp_path: Path) -> None:
    class Module:
        __version__ = "10.3.0"

        @staticmethod
        def get_plugin_registry() -> Registry:
            return Registry(accepts=False)

    with pytest.raises(
        PluginError, match=r"TensorRT 10.3.0 found no SvdqLinear in .*libsvdq_linear.so: use libsvdq_pl"
    ):
        library.load_into_tensorrt(Module, plain.path)
    with pytest.raises(PluginError, match="There is no plugin library .*absent.so: build it with"):
        library.load_into_tensorrt(Module, tmp_path / "absent.so")


def test_cmake_of_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cmake").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert toolchain.cmake() == os.fspath(tmp_path / "cmake")
