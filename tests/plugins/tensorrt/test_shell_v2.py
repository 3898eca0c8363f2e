"""The TensorRT 8 shell over a launch that records what it is asked, and in a real TensorRT 8 where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.tensorrt import toolchain
from tests.plugins.tensorrt.binary import needed_libraries, undefined_symbols


@pytest.mark.parametrize("case", toolchain.cases("host_v2.cpp"))
def test_host(case: str, v2: Path, v2_host: Path) -> None:
    done = toolchain.run([v2_host, v2, case])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"passed {case}\n"


def test_the_library_needs_neither_tensorrt_nor_cuda(v2_plain: Path) -> None:
    assert needed_libraries(v2_plain) <= {"libstdc++.so.6", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libdl.so.2"}
    assert not [
        name for name in undefined_symbols(v2_plain) if "nvinfer" in name or name.startswith(("cu", "getPlugin"))
    ]


def test_a_real_tensorrt_8_finds_the_plugin_in_its_own_way(v2_plain: Path) -> None:
    include = toolchain.headers(8)
    runtime = next((path for path in include.parent.glob("lib/libnvinfer.so.8")), None)
    if runtime is None:
        pytest.skip(f"no {include.parent / 'lib' / 'libnvinfer.so.8'}")
    load = toolchain.build("load-v2", [toolchain.TESTS / "load_v2.cpp"], include, ["-O0"])
    done = toolchain.run([load, runtime, v2_plain])
    assert done.returncode == 0, done.stdout + done.stderr
    version, opened, loaded = map(int, done.stdout.split())
    assert (opened, loaded) == ((1, 0) if version < 8600 else (0, 1))
    assert done.stderr == "SvdqLinear node: attribute layout_version is missing\n"
