"""What a bundle compiles on the device: the C++ example, and the plugin by CMake alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from engines.deploy.script import TEMPLATES
from tests.plugins.tensorrt import toolchain
from tests.plugins.toolchain import STAND_IN, needs_cross_compiler

STAND_INS = Path(__file__).parent / "stand_in" / "include"
CUDA = [Path(p) for p in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda")]


@pytest.mark.parametrize("major", [10, 8])
def test_the_example_compiles_against_tensorrt(major: int) -> None:
    headers = toolchain.headers(major)
    cuda = next((c / "include" for c in CUDA if (c / "include/cuda_runtime_api.h").is_file()), None)
    if cuda is None:
        pytest.skip("cuda_runtime_api.h is missing: install a CUDA toolkit or set CUDA_HOME")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-fsyntax-only"]
    command += ["-isystem", str(headers), "-isystem", str(cuda), str(TEMPLATES / "denoise.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PLAN = """\
input hidden_states type=1 min=1x4x8x8 opt=2x4x8x8
input encoder_attention_mask type=8 min=1x12 opt=2x12
input timestep type=0 min=1 opt=2
output out_sample type=1 min=1x4x8x8 opt=2x4x8x8
"""


@pytest.mark.parametrize("machine", ["here", "aarch64"])
def test_the_example_runs_a_step(machine: str, tmp_path: Path) -> None:
    """Against a TensorRT of a few lines (stand_in/include), here and as a Jetson would run it."""
    compiler, emulated = "g++", list[str]()
    if machine == "aarch64":
        needs_cross_compiler()
        compiler, emulated = "aarch64-linux-gnu-g++", [*emulator(), "-L", "/usr/aarch64-linux-gnu"]
    program = tmp_path / "denoise"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(STAND_INS), "-o", str(program)]
    subprocess.run([*command, str(TEMPLATES / "denoise.cpp"), "-ldl"], check=True)
    plan, plugin = tmp_path / "transformer.plan", tmp_path / "libsvdq_plugin.so"
    plan.write_text(PLAN)
    plugin.write_bytes(b"library")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        given = [*emulated, str(program), *map(str, arguments)]
        return subprocess.run(given, capture_output=True, text=True, check=False)

    done = run(plan, plugin, 3)
    assert done.returncode == 0, done.stderr
    assert "input  hidden_states: 512 elements" in done.stdout and "output out_sample: 512 elements" in done.stdout
    assert "integers add up to 24" in done.stdout and "one step: 2.00 ms (median of 3)" in done.stdout
    for arguments, words in (
        ((), "usage: denoise PLAN PLUGIN"),
        ((plan, plugin, 0), "CALLS must be 1 or more"),
        ((plan, tmp_path / "none.so"), "none.so cannot be loaded: run build.sh first"),
        ((tmp_path / "none.plan", plugin), "none.plan cannot be read: run build.sh first"),
        ((plugin, plugin), "is not for this device and TensorRT: run build.sh again"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def emulator() -> list[str]:
    """The command that runs aarch64's programs here."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not found:
        pytest.skip("qemu-user is missing: apt-get install qemu-user-static")
    return [found]


def test_the_plugin_builds_from_the_bundle_with_cmake_and_nvcc_alone(flux_bundle: Path, tmp_path: Path) -> None:
    """On kernels that compile in a second; those that ship take minutes and are the plugin's own tests."""
    headers = toolchain.headers(10)
    for tool in ("cmake", "nvcc"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is missing: install CMake and a CUDA toolkit")
    source = tmp_path / "plugin"
    shutil.copytree(flux_bundle / "plugin", source)
    for file in STAND_IN.glob("*.cu*"):
        shutil.copy(file, source / "svdq_linear" / "kernels")
    environment = {"PATH": os.environ["PATH"], "TensorRT_ROOT": str(headers.parent)}
    for command in (
        ["cmake", "-S", str(source), "-B", str(tmp_path / "build"), "-DSVDQ_ARCHS=87", "-DSVDQ_TENSORRT=10"],
        ["cmake", "--build", str(tmp_path / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "build/libsvdq_plugin.so").is_file()


def test_the_aarch64_library_of_a_bundle_loads_under_qemu(flux_bundle: Path, tmp_path: Path) -> None:
    needs_cross_compiler()
    qemu = emulator()
    made = flux_bundle / "plugin" / "libsvdq_plugin.so"
    if not made.is_file():
        pytest.skip("the bundle has no aarch64 library: its manifest says why")
    source = tmp_path / "load.c"
    source.write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\nint main(int n, char** a) { void* h = dlopen(a[1], RTLD_NOW); if (!h) "
        'return puts(dlerror()), 1; return dlsym(h, "getCreators") == NULL; }\n'
    )
    subprocess.run(["aarch64-linux-gnu-gcc", str(source), "-o", str(tmp_path / "load"), "-ldl"], check=True)
    command = [*qemu, "-L", "/usr/aarch64-linux-gnu", str(tmp_path / "load"), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
