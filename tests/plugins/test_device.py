"""plugins/device.py against a stand-in driver, SvdqLinear against a stand-in library: what is passed on, and how."""

from __future__ import annotations

import ctypes
import gc
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from plugins.device import CudaError, Device, Driver
from plugins.errors import PluginError
from plugins.library import SOURCES
from plugins.svdq_linear import interface
from plugins.svdq_linear.run import LaunchFailed, SvdqLinear
from plugins.svdq_linear.spec import Variant
from tests.plugins.toolchain import STAND_IN

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is missing: apt-get install gcc")


def compiled(directory: Path, name: str) -> Path:
    made = directory / f"{name}.so"
    include = f"-I{SOURCES / 'svdq_linear'}"
    command = ["gcc", "-std=c11", "-Wall", "-Werror", "-shared", "-fPIC", include, STAND_IN / f"{name}.c", "-o", made]
    subprocess.run(command, check=True)
    return made


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("cuda"), "libcuda")


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("linear"), "linear")


@pytest.fixture
def device(libcuda: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("SVDQ_LIBCUDA", str(libcuda))
    with Device() as opened:
        yield opened


@pytest.fixture
def stand_in(libcuda: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(libcuda))


def test_without_a_driver_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDQ_LIBCUDA", "/nowhere/libcuda.so.1")
    with pytest.raises(PluginError, match=r"There is no NVIDIA driver here \(/nowhere/libcuda.so.1"):
        Driver()


def test_a_gpu_that_is_not_there_is_one_sentence(device: Device) -> None:
    with pytest.raises(PluginError, match=r"GPU 3 cannot be used \(cuDeviceGet: something else \(101\)\)"):
        Device(3)


def test_a_function_that_the_driver_lacks_is_named(device: Device) -> None:
    with pytest.raises(PluginError, match="lacks cuNoSuchFunction"):
        device.driver.call("cuNoSuchFunction")


def test_the_device_describes_itself(device: Device) -> None:
    assert (device.name, device.capability, device.processors) == ("Stand-in 7", "8.7", 16)
    assert device.driver.version() == (12, 6)
    assert device.memory() == (2**20, 2**20)


@pytest.mark.parametrize("dtype", [np.int32, np.float16, ml_dtypes.bfloat16, np.uint8])
def test_arrays_go_to_the_device_and_come_back(device: Device, dtype: type) -> None:
    values = np.arange(-60, 60).astype(dtype).reshape(2, 3, 20)
    assert np.array_equal(device.upload(values).read(dtype, values.shape), values)
    strided = values[:, ::2, ::-1]
    assert np.array_equal(device.upload(strided).read(dtype, strided.shape), strided)


def test_memory_is_filled_overwritten_and_not_overrun(device: Device) -> None:
    memory = device.allocate(12)
    memory.fill(0x7F)
    memory.write(np.array([1, 2], np.int32))
    assert memory.read(np.int32, (3,)).tolist() == [1, 2, 0x7F7F7F7F]
    with pytest.raises(ValueError, match="16 bytes do not fit into 12"):
        memory.write(np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="16 bytes cannot be read from 12"):
        memory.read(np.int32, (4,))


def test_no_bytes_need_no_memory(device: Device) -> None:
    nothing = device.upload(np.zeros((0, 4), np.float16))
    nothing.fill(1)
    assert nothing.pointer == 0 and nothing.read(np.float16, (0, 4)).shape == (0, 4)


def test_memory_is_freed_with_its_last_reference(device: Device, stand_in: ctypes.CDLL) -> None:
    memory = device.allocate(1000)
    assert stand_in.stand_in_used() == 1000 and memory.pointer % 256 == 0
    memory.free()
    memory.free()
    device.allocate(2000)
    del memory
    gc.collect()
    assert stand_in.stand_in_used() == 0


def test_memory_that_outlives_its_device_is_left_alone(
    libcuda: Path, monkeypatch: pytest.MonkeyPatch, stand_in: ctypes.CDLL
) -> None:
    monkeypatch.setenv("SVDQ_LIBCUDA", str(libcuda))
    with Device() as device:
        memory = device.allocate(8)
    del memory
    gc.collect()
    assert stand_in.stand_in_stray() == 0


def test_too_much_memory_is_one_sentence_with_what_is_free(device: Device) -> None:
    with pytest.raises(PluginError, match=r"3 MiB do not fit into the GPU's memory, of which 1 of 1 MiB are free"):
        device.allocate(3 * 2**20)
    with pytest.raises(PluginError, match="4096 MiB do not fit"):
        device.allocate(2**32 + 8)  # 8 in 32 bits


def test_another_error_of_the_driver_keeps_its_number(device: Device) -> None:
    device.driver.call("cuCtxSetCurrent", None)
    with pytest.raises(CudaError, match=r"cuMemAlloc_v2: invalid device context \(201\)") as raised:
        device.allocate(8)
    assert raised.value.status == 201
    device.make_current()
    device.synchronize()


def test_a_capture_records_and_the_graph_replays(device: Device, stand_in: ctypes.CDLL) -> None:
    stream = device.stream()
    with stream.capture() as graph:
        assert stand_in.stand_in_recording()
    before = stand_in.stand_in_replayed()
    graph.launch(stream)
    graph.launch(stream)
    stream.synchronize()
    assert stand_in.stand_in_replayed() == before + 2
    graph.close()
    stream.close()


def test_a_capture_ends_where_its_block_fails(device: Device, stand_in: ctypes.CDLL) -> None:
    stream = device.stream()
    with pytest.raises(KeyError), stream.capture():
        raise KeyError
    assert not stand_in.stand_in_recording()
    stream.close()


def test_a_recording_that_cannot_be_made_a_graph_is_freed(
    device: Device, stand_in: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = device.driver.call

    def refusing(name: str, *arguments: object) -> None:
        if name == "cuGraphInstantiateWithFlags":
            raise CudaError(name, 801, "not supported")
        call(name, *arguments)

    monkeypatch.setattr(device.driver, "call", refusing)
    stream = device.stream()
    with pytest.raises(CudaError, match="not supported"), stream.capture():
        assert stand_in.stand_in_recording()
    stream.close()
    assert stand_in.stand_in_open() == 0


def test_events_time_a_stream(device: Device, stand_in: ctypes.CDLL) -> None:
    stream, begin, end = device.stream(), device.event(), device.event()
    begin.record(stream)
    end.record(stream)
    end.synchronize()
    assert end.milliseconds_since(begin) == 1.5 and end.milliseconds_since(end) == 0
    for thing in (begin, end, stream):
        thing.close()
    assert stand_in.stand_in_open() == 0


def constants(
    variant: Variant, n: int = 96, k: int = 200, rank: int = 32, dtype: type = np.float16
) -> dict[str, np.ndarray]:
    groups = -(-k // variant.group_size)
    shapes = {"wscale": (n, groups), "inv_smooth": (k,), "bias": (n,), "down": (k, rank), "up": (rank, n)}
    made = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    if not variant.branch:
        del made["down"], made["up"]
    return {"qweight": np.ones((n, k), np.int8), **made}


def said(path: Path) -> str:
    lib = ctypes.CDLL(str(path))
    lib.stand_in_said.restype = ctypes.c_char_p
    return str(lib.stand_in_said().decode())


def test_the_structs_are_laid_out_as_in_the_header(linear: Path) -> None:
    lib = ctypes.CDLL(str(linear))
    for struct, offset in ((interface.Layer, lib.stand_in_layer), (interface.Constants, lib.stand_in_constants)):
        offset.restype = ctypes.c_size_t
        assert {name: getattr(struct, name).offset for name, _ in struct._fields_} == {
            name: offset(name.encode()) for name, _ in struct._fields_
        }
        assert ctypes.sizeof(struct) == offset(b"")


def test_the_names_are_numbered_as_in_the_header() -> None:
    header = (SOURCES / "svdq_linear" / "launch.h").read_text(encoding="utf-8")
    types = dict(re.findall(r"SVDQ_(\w+) = (\d)", header))
    assert [types[name.upper()] for name in interface.DTYPES] == ["0", "1"]
    assert [types[name] for name in ("NONE", "GELU_TANH", "SILU")] == ["0", "1", "2"]


def test_every_function_of_the_header_has_its_types_declared(linear: Path) -> None:
    header = (SOURCES / "svdq_linear" / "launch.h").read_text(encoding="utf-8")
    lib = interface.load(linear)
    declared = re.findall(r"^SVDQ_API .*?(svdq_\w+)\(([^;]*)\);", header, re.MULTILINE | re.DOTALL)
    for name, arguments in declared:
        count = 0 if arguments == "void" else len(arguments.split(","))
        assert len(getattr(lib, name).argtypes) == count, name


def test_a_layer_is_passed_as_it_is(device: Device, linear: Path) -> None:
    variant = Variant(128, 8, False, 0.171875, "silu", branch=True)
    layer = SvdqLinear(device, constants(variant, dtype=ml_dtypes.bfloat16), variant, linear)
    y = layer(np.ones((2, 3, 200), ml_dtypes.bfloat16))
    assert y.shape == (2, 3, 96) and y.dtype == ml_dtypes.bfloat16
    shown = "n96 k200 r32 g128 a8 s0 f2 t1 shift0.171875 | 111111 | x1 y1 m6 tile1 w1 1200 stream0"
    assert said(linear) == f"both {shown}"


def test_a_layer_without_a_branch_passes_no_branch(device: Device, linear: Path) -> None:
    variant = Variant(branch=False)
    layer = SvdqLinear(device, constants(variant), variant, linear)
    layer(np.ones((3, 200), np.float16), tile=1)
    assert said(linear) == "both n96 k200 r0 g64 a4 s1 f0 t0 shift0 | 111001 | x1 y1 m3 tile1 w1 600 stream0"


def test_both_halves_are_enqueued_alone_on_a_stream(device: Device, linear: Path) -> None:
    variant = Variant()
    layer = SvdqLinear(device, constants(variant), variant, linear)
    layer.prepare()
    workspace, x, y = layer.workspace(8), device.allocate(8 * 400), device.allocate(8 * 192)
    layer.enqueue_quantize(x.pointer, 8, workspace, 0, stream=0x50)
    assert said(linear).startswith("quantize n96") and said(linear).endswith("x1 y0 m8 tile0 w1 1600 stream50")
    layer.enqueue_multiply(0, y.pointer, 8, workspace, 0, stream=0x60)
    assert said(linear).startswith("multiply n96") and said(linear).endswith("x0 y1 m8 tile0 w1 1600 stream60")


def test_tiles_are_those_valid_for_the_rows(device: Device, linear: Path) -> None:
    layer = SvdqLinear(device, constants(Variant()), Variant(), linear)
    assert layer.tiles(2) == {0: "few"} and layer.tiles(9) == {0: "few", 1: "many"}
    assert (layer.default_tile(2), layer.default_tile(9)) == (0, 1)
    weight_only = Variant(act_bits=16)
    assert SvdqLinear(device, constants(weight_only), weight_only, linear).tiles(2) == {0: "few", 2: "gemv"}


def test_what_the_library_refuses_is_said_in_its_words(device: Device, linear: Path) -> None:
    layer = SvdqLinear(device, constants(Variant()), Variant(), linear)
    with pytest.raises(LaunchFailed, match="svdq_enqueue: bad argument") as raised:
        layer(np.ones((3, 200), np.float16), tile=7)
    assert raised.value.status == 2
    with pytest.raises(LaunchFailed, match="svdq_check_layer: other"):
        SvdqLinear(device, constants(Variant(), k=201), Variant(), linear)


def test_inputs_that_do_not_fit_are_refused(device: Device, linear: Path) -> None:
    layer = SvdqLinear(device, constants(Variant()), Variant(), linear)
    for x in (np.ones((3, 199), np.float16), np.ones((3, 200), np.float32)):
        with pytest.raises(ValueError, match=r"the layer takes float16\[\.\.\., 200\]"):
            layer(x)
    with pytest.raises(ValueError, match="in float16 or bfloat16, not in float32"):
        SvdqLinear(device, constants(Variant(), dtype=np.float32), Variant(), linear)
    with pytest.raises(ValueError, match="down is missing, but branch=True"):
        SvdqLinear(device, constants(Variant(branch=False)), Variant(), linear)
