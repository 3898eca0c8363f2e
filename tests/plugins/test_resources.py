"""The kernels, compiled for every architecture: what they take of a GPU, and which instructions they really use.

About a minute of one core per architecture the first time; then found in the cache, until a source file of the kernels
changes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from plugins import compilers, resources
from plugins.architectures import (
    ARCHITECTURES,
    REGISTERS_PER_MULTIPROCESSOR,
    REGISTERS_PER_THREAD,
    STATIC_SHARED_MEMORY,
    Architecture,
    find,
)
from tests.plugins.toolchain import STAND_IN, compiler_for

TILES_H = compilers.SOURCE.with_name("tiles.h").read_text(encoding="utf-8")
QUANTIZE_THREADS = 128
RESERVED = 1024  # bytes of shared memory that every block costs beyond its own

# Blocks that a multiprocessor must have room for: with fewer, nothing hides the latency of global memory. The largest
# tile hides its own, by its stages and 8 warps.
BLOCKS = {
    "quantize": 2,
    "m16n64": 2,
    "m32n64": 2,
    "m64n128": 2,
    "m128n128": 2,
    "m256n128": 1,
    "gemv1": 2,
    "gemv4": 1,
    "gemv6": 1,
}
# The subroutine that the compilers call for a 4-bit multiplication where there is no such instruction: two 8-bit ones
# and about 190 instructions around them.
EMULATION = b"mma_sub_byte_internal"

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.flag)


def threads() -> dict[str, int]:
    """Of a block, by tile: what tiles.h says."""
    rows = re.findall(r"^\s+(STAGED|DIRECT|GEMV)\((\w+), ([\d, ]+)\)", TILES_H, re.MULTILINE)
    found = {"quantize": QUANTIZE_THREADS}
    for kind, name, numbers in rows:
        first, second, *_ = map(int, numbers.split(","))
        found[name] = 32 * (first * second if kind == "STAGED" else second)
    return found


def kernels(architecture: Architecture) -> list[resources.Resources]:
    return resources.read(compilers.cubin(architecture, compiler_for(architecture.name)).log)


def tile_of(kernel: str) -> str:
    """ "m64n128" of "svdq_m64n128_f16_s4"."""
    return kernel.split("_")[1]


def codes_of(kernel: str) -> str:
    return kernel.rsplit("_", 1)[1]


def blocks_that_fit(architecture: Architecture, kernel: resources.Resources, block: int) -> int:
    """Blocks of `block` threads on one multiprocessor (CUDA programming guide, "Occupancy")."""
    registers = -(-kernel.registers // 8) * 8 * block  # given out 256 to a warp
    shared = architecture.shared_memory + RESERVED
    by_registers = REGISTERS_PER_MULTIPROCESSOR // registers
    return min(by_registers, shared // (kernel.shared + RESERVED), architecture.threads // block)


@every_architecture
def test_no_kernel_spills_registers_or_keeps_arrays_in_memory(architecture: Architecture) -> None:
    assert [k for k in kernels(architecture) if k.spilled or k.stack] == []


@every_architecture
def test_every_kernel_keeps_to_its_budget(architecture: Architecture) -> None:
    of_block = threads()
    assert set(BLOCKS) == set(of_block), "tiles.h and BLOCKS name other tiles"
    for kernel in kernels(architecture):
        tile = tile_of(kernel.kernel)
        assert kernel.registers <= REGISTERS_PER_THREAD and kernel.shared <= STATIC_SHARED_MEMORY
        assert blocks_that_fit(architecture, kernel, of_block[tile]) >= BLOCKS[tile], kernel


@every_architecture
def test_every_tile_has_every_kernel_that_the_launcher_may_ask_for(architecture: Architecture) -> None:
    codes = {"s4", "u4", "s8", "u8"} if architecture.native_int4 else {"s8", "u8"}
    expected = {
        f"svdq_{tile}_{dtype}{suffix}"
        for tile in threads()
        if tile != "quantize"
        for dtype in ("f16", "bf16")
        for suffix in ([""] if tile.startswith("gemv") else [f"_{c}" for c in codes])
    }
    names = [k.kernel for k in kernels(architecture)]
    assert {n for n in names if not n.startswith("svdq_quantize")} == expected
    assert len(names) == len(set(names))


def nvdisasm() -> Path:
    """CUDA's disassembler, on PATH, in a toolkit or in a pip package; skips where there is none."""
    places = [
        Path(shutil.which("nvdisasm") or "/nowhere"),
        Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvdisasm"),
    ]
    for package, inside in (("nvidia", "cu13/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        places += [Path(p, inside, "nvdisasm") for p in (spec and spec.submodule_search_locations) or ()]
    for place in places:
        if place.exists():
            return place
    pytest.skip("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")


@functools.cache
def multiplications(name: str) -> dict[str, set[str]]:
    """Names of the matrix multiplications ("IMMA.16864.S4.S4"), by kernel that has a tile."""
    command = nvdisasm()
    made = compilers.cubin(find(name), compiler_for(name))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.cubin)
        file.flush()
        text = subprocess.run([command, "-c", file.name], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^\t\.section\t\.text\.", text, flags=re.MULTILINE)[1:]
    found = {s[: s.index(",")]: set(re.findall(r"\b[A-Z]+MMA\.[A-Z0-9.]+", s)) for s in sections}
    return {kernel: names for kernel, names in found.items() if tile_of(kernel)[0] == "m"}


def of(unit: str, names: set[str]) -> set[str]:
    """Those of "IMMA" (integers) or "HMMA" (16-bit floats)."""
    return {name for name in names if name.startswith(unit)}


def test_orin_multiplies_4_bits_natively() -> None:
    wanted = {"s4": "IMMA.16864.S4.S4", "u4": "IMMA.16864.U4.S4", "s8": "IMMA.16832.S8.S8", "u8": "IMMA.16832.U8.S8"}
    found = multiplications("87")
    assert found
    for kernel, names in found.items():
        assert of("IMMA", names) == {wanted[codes_of(kernel)]}, kernel


@pytest.mark.parametrize("name", ["90a", "110f"])
def test_where_4_bits_are_not_native_8_bits_are_multiplied(name: str) -> None:
    found = multiplications(name)
    assert found
    for kernel, names in found.items():
        assert of("IMMA", names) == {f"IMMA.16832.{codes_of(kernel).upper()}.S8"}, kernel


@pytest.mark.parametrize("name", ["87", "90a", "110f"])
def test_the_branch_is_multiplied_in_its_own_type_with_float32_sums(name: str) -> None:
    for kernel, names in multiplications(name).items():
        assert of("HMMA", names) == {"HMMA.16816.F32.BF16" if "_bf16_" in kernel else "HMMA.16816.F32"}, kernel


@every_architecture
def test_no_multiplication_is_emulated(architecture: Architecture) -> None:
    compiler = compiler_for(architecture.name)
    assert EMULATION not in compilers.cubin(architecture, compiler).cubin
    shown = EMULATION in compilers.cubin(architecture, compiler, STAND_IN / "emulated.cu").cubin
    assert shown == (not architecture.native_int4), "an emulated multiplication would not be noticed here"
