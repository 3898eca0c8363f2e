"""The kernels on a real GPU: equal to the oracle at the sizes of real models, alone and side by side."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from plugins.device import Device
from plugins.errors import PluginError
from plugins.svdq_linear import reference
from plugins.svdq_linear.run import SvdqLinear
from plugins.svdq_linear.spec import GELU_SHIFT
from tests.plugins.kernels.case import DTYPES, Case

pytestmark = pytest.mark.gpu

LAYERS = {  # K, N
    "FLUX attention": (3072, 3072),
    "FLUX MLP in": (3072, 12288),
    "FLUX MLP out": (12288, 3072),
    "SDXL feed-forward": (1280, 10240),
    "SANA feed-forward": (2240, 11200),
    "SANA feed-forward out": (5600, 2240),
}
ROWS = (1, 7, 16, 17, 300, 1024, 4608)
CHECKED = 24  # rows are independent, and the oracle takes its time


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    try:
        found = Device()
    except PluginError as e:
        pytest.skip(str(e))
    if found.name == "CPU stand-in":
        pytest.skip("there is no GPU, only its stand-in on the CPU")
    yield found
    found.close()


def wrong(case: Case, y: np.ndarray) -> int:
    """Elements out of bounds among CHECKED rows of y, which is of the first rows of x: the special ones among them."""
    m = y.shape[0]
    rows = np.unique(np.concatenate([np.arange(min(8, m)), np.linspace(0, m - 1, CHECKED).astype(int)]))
    c = case.constants
    expected, tolerance = reference.svdq_linear(
        case.x[rows], c["qweight"], c["wscale"], c["inv_smooth"], c.get("down"), c.get("up"), c["bias"], case.variant
    )
    return int(np.logical_not(reference.agrees(y[rows], expected, tolerance)).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_tile_equals_the_oracle_at_real_sizes(device: Device, layer: str, dtype: str) -> None:
    k, n = LAYERS[layer]
    kinds = [
        {"rank": 32},
        {"rank": 32, "act_signed": False, "act_shift": GELU_SHIFT, "activation": "gelu_tanh"},
        {"rank": 128, "act_bits": 8, "group_size": 128, "activation": "silu"},
        {"rank": 0, "act_bits": 16},
    ]
    for kind in kinds:
        case = Case("", dtype, max(ROWS), n, k, **kind)
        linear = SvdqLinear(device, case.constants, case.variant)
        for m in ROWS:
            for tile, name in linear.tiles(m).items():
                y = linear(case.x[:m], tile)
                assert wrong(case, y) == 0, (name, m, kind)
                again = linear(case.x[:m], tile)
                assert (y.view(np.uint16) == again.view(np.uint16)).all(), f"{name} repeats other bits"


def test_a_captured_graph_replays(device: Device) -> None:
    case = Case("", "float16", 300, 3072, 3072, 32)
    linear = SvdqLinear(device, case.constants, case.variant)
    linear.prepare()
    x, y = device.upload(np.zeros_like(case.x)), device.allocate(2 * case.m * case.n)
    workspace, stream = linear.workspace(case.m), device.stream()
    with stream.capture() as graph:
        linear.enqueue(x.pointer, y.pointer, case.m, workspace, stream=stream.handle)
    x.write(case.x)
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    assert wrong(case, y.read(DTYPES["float16"], (case.m, case.n))) == 0


def test_two_streams_do_not_disturb_each_other(device: Device) -> None:
    cases = [Case("", "bfloat16", 512, 3072, 3072, 32, seed=s) for s in (1, 2)]
    layers = [SvdqLinear(device, c.constants, c.variant) for c in cases]
    xs = [device.upload(c.x) for c in cases]
    ys = [device.allocate(2 * c.m * c.n) for c in cases]
    workspaces, streams = [layer.workspace(512) for layer in layers], [device.stream(), device.stream()]
    for _ in range(20):
        for layer, x, y, workspace, stream in zip(layers, xs, ys, workspaces, streams, strict=True):
            layer.enqueue(x.pointer, y.pointer, 512, workspace, stream=stream.handle)
    device.synchronize()
    for case, y in zip(cases, ys, strict=True):
        assert wrong(case, y.read(DTYPES["bfloat16"], (case.m, case.n))) == 0


def test_a_second_context_loads_kernels_of_its_own(device: Device) -> None:
    case = Case("", "float16", 64, 256, 512, 32)
    expected = SvdqLinear(device, case.constants, case.variant)(case.x)
    context = ctypes.c_void_p()
    device.driver.call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    try:
        again = SvdqLinear(device, case.constants, case.variant)(case.x)
    finally:
        device.driver.call("cuCtxDestroy_v2", context)
        device.make_current()
    assert (expected.view(np.uint16) == again.view(np.uint16)).all()
    assert (SvdqLinear(device, case.constants, case.variant)(case.x).view(np.uint16) == again.view(np.uint16)).all()


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(device: Device, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        pytest.skip("compute-sanitizer is missing: it comes with the CUDA toolkit")
    program = (
        "from plugins.device import Device; from plugins.svdq_linear.run import SvdqLinear\n"
        "from tests.plugins.kernels.case import Case\n"
        "d = Device()\n"
        "for bits, m in ((4, 5), (4, 300), (8, 70), (16, 5)):\n"
        "    c = Case('', 'float16', m, 200, 520, 32, act_bits=bits)\n"
        "    l = SvdqLinear(d, c.constants, c.variant)\n"
        "    assert not any(c.disagreements(l(c.x, t)) for t in l.tiles(m))\n"
    )
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
