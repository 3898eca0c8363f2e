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
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not emulator:
        pytest.skip("qemu-user is missing: apt-get install qemu-user-static")
    made = flux_bundle / "plugin" / "libsvdq_plugin.so"
    if not made.is_file():
        pytest.skip("the bundle has no aarch64 library: its manifest says why")
    source = tmp_path / "load.c"
    source.write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\nint main(int n, char** a) { void* h = dlopen(a[1], RTLD_NOW); if (!h) "
        'return puts(dlerror()), 1; return dlsym(h, "getCreators") == NULL; }\n'
    )
    subprocess.run(["aarch64-linux-gnu-gcc", str(source), "-o", str(tmp_path / "load"), "-ldl"], check=True)
    command = [emulator, "-L", "/usr/aarch64-linux-gnu", str(tmp_path / "load"), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
