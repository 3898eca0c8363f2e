"""The kernels' own source, run on the CPU, equals the oracle as the contract defines equality."""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from plugins.svdq_linear.spec import GELU_SHIFT
from tests.plugins.kernels.case import DTYPES, Case
from tests.plugins.kernels.compiled import SOURCES, Compiled, changed_copy, compile_for_cpu
from tests.plugins.kernels.conftest import run_cases

TILES = re.findall(r"^ +(STAGED|DIRECT|GEMV)\((\w+)", (SOURCES / "kernels" / "tiles.h").read_text(), re.MULTILINE)
QUANTISING = [name for kind, name in TILES if kind != "GEMV"]
WEIGHT_ONLY = [name for kind, name in TILES if kind == "GEMV"]
NATIVE, WIDENED = "8.7", "9.0"

# Ragged rows, columns that end inside a block, channels that end inside a group, ranks in and across chunks.
SHAPES = [
    {"m": 33, "n": 130, "k": 200, "rank": 32},
    {"m": 70, "n": 72, "k": 320, "rank": 16, "act_signed": False, "act_shift": GELU_SHIFT, "activation": "gelu_tanh"},
    {"m": 17, "n": 63, "k": 301, "rank": 0, "act_bits": 8, "group_size": 128, "activation": "silu"},
    {"m": 9, "n": 200, "k": 640, "rank": 160, "act_bits": 8, "act_signed": False},
    {"m": 127, "n": 64, "k": 1536, "rank": 48, "group_size": 128},
    {"m": 1, "n": 128, "k": 64, "rank": 16},
]
WEIGHT_ONLY_SHAPES = [
    {"m": 3, "n": 130, "k": 200, "rank": 0},
    {"m": 9, "n": 64, "k": 640, "rank": 32, "group_size": 128, "activation": "silu"},
    {"m": 20, "n": 77, "k": 333, "rank": 144, "act_shift": GELU_SHIFT, "activation": "gelu_tanh"},
]


def every_tile() -> list[Case]:
    """Each tile with each type and each shape that it is valid for."""
    rows = [Case(t, d, **s) for t, d, s in itertools.product(QUANTISING, DTYPES, SHAPES)]
    rows += [Case(t, d, act_bits=16, **s) for t, d, s in itertools.product(WEIGHT_ONLY, DTYPES, WEIGHT_ONLY_SHAPES)]
    return rows


def assert_agree(cases: list[Case], answers: list[dict[str, object]]) -> None:
    wrong = [(c, a) for c, a in zip(cases, answers, strict=True) if a["wrong"]]
    assert not wrong, "\n".join(f"{a['wrong']} of {a['of']} elements are wrong: {c}" for c, a in wrong)


def test_the_tile_table_is_what_is_tested() -> None:
    assert len(QUANTISING) >= 5 and len(WEIGHT_ONLY) >= 3


@pytest.mark.parametrize("capability", [NATIVE, WIDENED])
def test_every_tile_type_and_tail_equals_the_oracle(compiled: Compiled, capability: str) -> None:
    cases = every_tile()
    assert_agree(cases, run_cases(compiled, cases, capability=capability))


def test_native_and_widened_multiplications_give_the_same_bits(compiled: Compiled) -> None:
    cases = [c for c in every_tile() if c.act_bits == 4]
    native, widened = (run_cases(compiled, cases, capability=c) for c in (NATIVE, WIDENED))
    assert [a["bits"] for a in native] == [a["bits"] for a in widened]


@pytest.mark.parametrize("processors", [1, 100])
def test_any_schedule_of_threads_and_copies_gives_the_same_bits(compiled: Compiled, processors: int) -> None:
    """With 100 processors K is split among blocks, whose sums must be added in one order whoever comes last."""
    cases = [c for c in every_tile() if c.k > 64]
    first = [a["bits"] for a in run_cases(compiled, cases, processors=processors)]
    for seed, copies in ((1, "late"), (2, "early"), (3, "late")):
        again = run_cases(compiled, cases, processors=processors, seed=seed, copies=copies)
        assert [a["bits"] for a in again] == first
        assert_agree(cases, again)


@pytest.mark.parametrize("rank", [16, 32, 48, 112, 128, 144, 256, 1024])
def test_any_rank_in_steps_of_16_needs_no_kernel_of_its_own(compiled: Compiled, rank: int) -> None:
    cases = [Case(t, "float16", 18, 66, 130, rank) for t in ("m16n64", "m64n128")]
    assert_agree(cases, run_cases(compiled, cases))


@pytest.mark.parametrize("capability", [NATIVE, WIDENED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_and_scales_are_the_oracle_s_bit_for_bit(compiled: Compiled, dtype: str, capability: str) -> None:
    variants = itertools.product((4, 8), (True, False), (64, 128), (0.0, GELU_SHIFT))
    cases = [
        Case("m64n128", dtype, m, 200, k, 32, group, bits, signed, shift, seed=seed)
        for seed, (bits, signed, group, shift) in enumerate(variants)
        for m, k in ((40, 200), (260, 333), (5, 1024))
    ]
    cases += [Case("m64n128", dtype, 64, 200, 512, group_size=g, ties=True) for g in (64, 128)]
    for case, answer in zip(
        cases, run_cases(compiled, cases, "codes", capability=capability, processors=1), strict=True
    ):
        assert answer == {"codes": 0, "scales": 0}, case


def test_no_rows_are_no_work(compiled: Compiled) -> None:
    cases = [Case(QUANTISING[0], "float16", 0, 64, 64, 16), Case(WEIGHT_ONLY[0], "bfloat16", 0, 64, 64, act_bits=16)]
    assert [a["of"] for a in run_cases(compiled, cases)] == [0, 0]


def test_a_captured_graph_replays_on_new_input(compiled: Compiled) -> None:
    cases = [Case(t, "float16", 20, 130, 700, 32) for t in QUANTISING]
    for answer in run_cases(compiled, cases, "replay", processors=100):
        assert answer == {"wrong": 0, "untouched": True}


@pytest.mark.parametrize("capability", [NATIVE, WIDENED])
def test_nothing_is_read_or_written_out_of_bounds(sanitized: Compiled, capability: str) -> None:
    cases = [c for c in every_tile() if c.dtype == "float16" or c.tile == "m64n128"]
    assert_agree(cases, run_cases(sanitized, cases, capability=capability, processors=50))


STAGED, SPLIT, QUANTIZE, EPILOGUE = (f"kernels/{n}.cuh" for n in ("gemm_staged", "split", "quantize", "epilogue"))
MISTAKES = {
    "no barrier before a stage is read": (
        STAGED,
        "            __syncthreads();  // the copies",
        "            // the copies",
    ),
    "a copy that is waited for too late": (STAGED, "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
    "a stage overwritten while it is read": (
        STAGED,
        "stages[static_cast<uint32_t>(ahead - begin) % kStages]",
        "stages[static_cast<uint32_t>(k - begin) % kStages]",
    ),
    "the wrong row of a fragment": (
        STAGED,
        "scales_of_rows[block * 16 + 8 * i + lane / 4]",
        "scales_of_rows[block * 16 + 4 * i + lane / 4]",
    ),
    "the wrong column of y": (EPILOGUE, "64 + 16 * (lane % 4) + 2 * first;", "64 + 16 * (lane % 4 ^ 1) + 2 * first;"),
    "sums that are not waited for": ("kernels/gemm_direct.cuh", "        __syncthreads();\n", ""),
    "a multiplication where the contract divides": (
        QUANTIZE,
        "if (divide && usable)",
        "if (divide && usable && p.m < 0)",
    ),
    "a NaN that does not spread": (
        QUANTIZE,
        "bool const finite = peak.magnitude < 0x7f800000u;",
        "bool const finite = true;",
    ),
    "ranks that are not rounded to T": (
        EPILOGUE,
        "a[0] = T::pack(sums[0][0], sums[0][1])",
        "a[0] = T::pack(sums[0][0] * 1.01f, sums[0][1])",
    ),
    "a split that is left out": (SPLIT, "for (int s = 1; s < splits; ++s)", "for (int s = 1; s < splits - 1; ++s)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_kernel_with_a_mistake_is_caught(folder: Path, tmp_path: Path, mistake: str) -> None:
    """Each would pass a test that looks less closely: some only under an unlucky schedule."""
    broken = compile_for_cpu(folder, changed_copy(tmp_path, *MISTAKES[mistake]))
    cases = [replace(c, seed=5) for c in every_tile() if c.dtype == "float16" and c.act_bits < 16]
    codes = [Case("m64n128", "float16", 64, 200, 512, seed=s, ties=t) for s in range(4) for t in (False, True)]
    wrong = 0
    for environment in ({"processors": 50}, {"seed": 1, "copies": "early"}, {"seed": 2}):
        wrong += sum(bool(a["wrong"]) for a in run_cases(broken, cases, **environment))
        wrong += sum(bool(a["codes"] or a["scales"]) for a in run_cases(broken, codes, "codes", processors=1))
        if wrong:
            return
    pytest.fail("no test noticed")


def test_plans_cover_every_channel_and_fit_the_workspace(folder: Path) -> None:
    """A C++ program over a hundred thousand layers, row counts, tiles and GPUs (plan_test.cpp)."""
    program = folder / "plan_test"
    program.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / "plan_test.cpp"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", source, SOURCES / "plan.cpp"]
    subprocess.run([*command, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
