"""The shell in the registries of real TensorRT runtimes. None is asked to run: that takes a GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.tensorrt import toolchain
from tests.plugins.tensorrt.binary import newest_glibc
from tests.plugins.tensorrt.toolchain import FAKE, HASH, TESTS, V3

RUNTIMES = {
    "10.16": ("tensorrt-lean-cu12-libs==10.16.1.11", "tensorrt-lean-cu12-bindings==10.16.1.11"),
    "11.4": ("tensorrt-lean-cu13-libs==11.4.0.106", "tensorrt-lean-cu13-bindings==11.4.0.106"),
}
ATTRIBUTES = ["n", "k", "rank", "group_size", "act_bits", "act_signed", "layout_version", "act_shift", "activation"]


@pytest.fixture(scope="module", params=RUNTIMES, ids=lambda version: f"tensorrt-{version}")
def seen(request: pytest.FixtureRequest, v3_plain: Path) -> dict[str, Any]:
    """What client.py saw of the plugin in one runtime."""
    packages = toolchain.pip_install(*RUNTIMES[request.param])
    done = toolchain.run([sys.executable, TESTS / "client.py", v3_plain], PYTHONPATH=str(packages))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["version"].startswith(request.param)
    return found


def test_loading_registers_the_creator_and_unloading_removes_it(seen: dict[str, Any]) -> None:
    assert seen["before"] is False and seen["after"] is False
    assert seen["creator"] == ["SvdqLinear", "1", "", "PLUGIN CREATOR_V3ONE"]


def test_the_creator_lists_its_attributes(seen: dict[str, Any]) -> None:
    assert [name for name, _ in seen["fields"]] == ATTRIBUTES
    assert {kind for _, kind in seen["fields"]} == {"INT32", "FLOAT32", "CHAR"}


def test_good_nodes_are_made_and_bad_ones_refused(seen: dict[str, Any]) -> None:
    assert seen["good"] == [True, True]
    assert seen["bad"] == [False] * 4


def test_a_plugin_shows_its_capabilities(seen: dict[str, Any]) -> None:
    assert seen["interfaces"] == ["PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME"]
    assert seen["core"] == ["SvdqLinear", "1", ""]
    assert seen["outputs"] == 1
    assert seen["metadata"] == "n192_k128_r16_g64_a4s_silu_shift3e300000_layout1"
    assert seen["timing"] is None  # built without SVDQ_SOURCE_HASH


@pytest.mark.parametrize("version", RUNTIMES)
def test_a_host_in_cpp_loads_the_plugin(version: str, v3_plain: Path) -> None:
    load = toolchain.build("load", [TESTS / "load.cpp"], toolchain.headers(10), ["-O0"])
    packages = toolchain.pip_install(*RUNTIMES[version])
    check_load([load], packages / "tensorrt_lean_libs", v3_plain)


def test_an_aarch64_build_loads_into_the_aarch64_runtime_and_passes_the_hosts_cases() -> None:
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("no qemu-aarch64: on Debian, apt install qemu-user-static g++-aarch64-linux-gnu")
    compiler = "aarch64-linux-gnu-g++"
    include = toolchain.headers(10)
    library = toolchain.build("v3-aarch64", [*V3, FAKE], include, ["-O2", "-shared", HASH], compiler)
    host = toolchain.build("host-aarch64", [TESTS / "host.cpp"], include, ["-O0"], compiler)
    load = toolchain.build("load-aarch64", [TESTS / "load.cpp"], include, ["-O0"], compiler)
    assert newest_glibc(library) <= (2, 35)

    emulated = [qemu, "-L", "/usr/aarch64-linux-gnu"]
    done = toolchain.run([*emulated, host, library])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\n")[:-1] == [f"passed {case}" for case in toolchain.cases("host.cpp")]

    packages = toolchain.pip_unpack("tensorrt-lean-cu13-libs==11.4.0.106", "manylinux_2_35_aarch64")
    check_load([*emulated, load], packages / "tensorrt_lean_libs", library)


def check_load(load: list[str | Path], libraries: Path, plugin: Path) -> None:
    """load.cpp's output for one runtime."""
    runtime = next(libraries.glob("libnvinfer_lean.so.*"))
    done: subprocess.CompletedProcess[str] = toolchain.run([*load, runtime, plugin])
    assert done.returncode == 0, done.stdout + done.stderr
    version, *names, metadata = done.stdout.split()
    assert int(version) // 10000 == int(runtime.suffix[1:])
    assert names == ATTRIBUTES
    assert metadata == "n64_k64_r0_g64_a4s_none_shift00000000_layout1"
