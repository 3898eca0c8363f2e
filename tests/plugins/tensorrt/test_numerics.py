"""From an ONNX node's attributes to y, through the TensorRT 10 shell, the real launch and the kernels on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plugins.svdq_linear import layout
from tests.plugins.kernels.case import Case
from tests.plugins.kernels.compiled import Compiled, compile_for_cpu
from tests.plugins.tensorrt import toolchain
from tests.plugins.tensorrt.enqueue import enqueue

KERNELS = toolchain.SHELL.parent


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The kernels on the CPU, in the folder of tests/plugins/kernels."""
    toolchain.headers(10)
    base = tmp_path_factory.getbasetemp()
    return compile_for_cpu((base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "kernels")


@pytest.fixture(scope="module")
def library(compiled: Compiled) -> Path:
    launch = [
        *(KERNELS / name for name in ("plan.cpp", "driver.cpp", "launch.cpp")),
        compiled.linear.parent / "fatbin.S",
    ]
    return toolchain.build("v3-launch", [*toolchain.V3, *launch], toolchain.headers(10), ["-O1", "-shared"])


@pytest.mark.parametrize(
    "case",
    [
        Case("all", "float16", 5, 100, 200, rank=32),
        Case("all", "float16", 33, 65, 320, act_signed=False, act_shift=0.171875, activation="silu"),
        Case("all", "bfloat16", 40, 192, 256, rank=16, group_size=128, act_bits=8, activation="gelu_tanh"),
        Case("all", "float16", 3, 100, 200, rank=48, act_bits=16, activation="gelu_tanh"),
    ],
    ids=lambda case: f"{case.dtype}-a{case.act_bits}-r{case.rank}-{case.activation}",
)
def test_every_tactic_computes_the_reference(
    case: Case, compiled: Compiled, library: Path, enqueue_host: Path, tmp_path: Path
) -> None:
    constants = {"down": None, "up": None, **case.constants}
    packed = layout.pack(**constants, group_size=case.group_size)  # type: ignore[arg-type]
    attributes = {**case.variant.attributes(case.rank), "n": case.n, "k": case.k}
    attributes["layout_version"] = layout.LAYOUT_VERSION
    where = {"LD_LIBRARY_PATH": str(compiled.cuda.parent)}
    y, tactics = enqueue(enqueue_host, library, tmp_path, attributes, case.x, packed, **where)
    assert case.disagreements(y) == 0
    assert len(tactics) >= 3
    for tactic in tactics:
        y, again = enqueue(enqueue_host, library, tmp_path, attributes, case.x, packed, tactic, **where)
        assert case.disagreements(y) == 0, tactic
        assert again == tactics
