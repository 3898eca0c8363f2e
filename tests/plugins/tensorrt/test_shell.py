"""The TensorRT 10 shell alone, over a launch that records what it is asked."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from plugins.svdq_linear import layout
from plugins.svdq_linear.spec import Variant, group_count
from tests.plugins.tensorrt import toolchain
from tests.plugins.tensorrt.binary import needed_libraries, newest_glibc, undefined_symbols
from tests.plugins.tensorrt.enqueue import enqueue


@pytest.mark.parametrize("case", toolchain.cases("host.cpp"))
def test_host(case: str, v3: Path, v3_host: Path) -> None:
    done = toolchain.run([v3_host, v3, case])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"passed {case}\n"


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_mutations_of_fields_are_accepted_or_refused(seed: int, v3: Path, fuzz: Path) -> None:
    done = toolchain.run([fuzz, v3, str(seed), "10000"])
    assert done.returncode == 0, done.stdout[-4000:]
    attributes, serialised = map(int, done.stdout.split())
    assert 500 < attributes < 4500 and 500 < serialised < 4500  # of 5000 each: both sides of every check are walked
    said = set(re.sub(r"-?\d+", "N", line.split(": ", 1)[1])[:24] for line in done.stderr.splitlines() if ": " in line)
    assert len(said) > 20


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("rank", [0, 16, 48])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (64, 64), (100, 200), (65, 129), (192, 640)])
def test_what_layout_packs_is_what_the_plugin_takes(
    n: int, k: int, rank: int, group: int, v3: Path, enqueue_host: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)

    def values(*shape: int) -> layout.Array:
        return random.standard_normal(shape).astype(np.float16)

    packed = layout.pack(
        random.integers(-7, 8, (n, k)),
        values(n, group_count(k, group)),
        values(k),
        values(k, rank) if rank else None,
        values(rank, n) if rank else None,
        values(n),
        group,
    )
    attributes = {
        **Variant(group_size=group, branch=rank > 0).attributes(rank),
        "n": n,
        "k": k,
        "layout_version": layout.LAYOUT_VERSION,
    }
    x = values(3, 5, k)
    y, tactics = enqueue(enqueue_host, v3, tmp_path, attributes, x, packed)
    np.testing.assert_array_equal(y, np.broadcast_to(packed.bias[:n], (3, 5, n)))  # what fake_launch.cpp computes
    assert tactics == [1, 2]


def test_a_layer_whose_tensors_are_anothers_is_refused(v3: Path, enqueue_host: Path, tmp_path: Path) -> None:
    ones = np.ones((128, 128), np.float16)
    packed = layout.pack(ones.astype(int), ones[:, :2], ones[0], None, None, ones[0], 64)
    attributes = {**Variant(branch=False).attributes(0), "n": 128, "k": 128, "layout_version": 1}
    with pytest.raises(AssertionError, match=r"x is \[3, 64\]; its last dimension must be k = 128"):
        enqueue(enqueue_host, v3, tmp_path, attributes, ones[:3, :64], packed)
    with pytest.raises(AssertionError, match=r"^createPlugin\n.*layout 2"):
        enqueue(enqueue_host, v3, tmp_path, {**attributes, "layout_version": 2}, ones[:3], packed)


def test_the_library_needs_neither_tensorrt_nor_cuda_and_no_newer_glibc_than_jetpack_6_has(v3_plain: Path) -> None:
    assert needed_libraries(v3_plain) <= {"libstdc++.so.6", "libc.so.6", "libm.so.6", "libgcc_s.so.1"}
    assert newest_glibc(v3_plain) <= (2, 35)
    assert not [
        name for name in undefined_symbols(v3_plain) if "nvinfer" in name or name.startswith(("cu", "getPlugin"))
    ]
