"""A GPU through the CUDA driver API by ctypes: memory, streams, events and graphs, as tests and benchmarks need them.

Everything goes through libcuda.so.1 as the loader finds it, or the one that $SVDQ_LIBCUDA names. Nothing but the driver
is needed. CUDA driver API reference, 12.0.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from plugins.errors import PluginError

Array = np.ndarray[Any, Any]

_PROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_OUT_OF_MEMORY = 2


class CudaError(RuntimeError):
    """A call that the driver refused: `status` is its CUresult."""

    def __init__(self, call: str, status: int, text: str) -> None:
        super().__init__(f"{call}: {text} ({status})")
        self.status = status


class Driver:
    """The opened libcuda. Raises PluginError where there is none."""

    def __init__(self) -> None:
        path = os.environ.get("SVDQ_LIBCUDA") or "libcuda.so.1"
        try:
            self._lib = ctypes.CDLL(path)
        except OSError as e:
            raise PluginError(f"There is no NVIDIA driver here ({e}): this needs a machine with a GPU.") from e

    def call(self, name: str, *arguments: Any) -> None:
        """Call `name` and raise CudaError unless it succeeds. Python's ints pass as C ints: wrap pointers and sizes."""
        try:
            function: Callable[..., int] = getattr(self._lib, name)
        except AttributeError as e:
            raise PluginError(f"The NVIDIA driver here lacks {name}: it is older than CUDA 12.") from e
        if status := function(*arguments):
            raise CudaError(name, status, self._text(status))

    def version(self) -> tuple[int, int]:
        """(12, 6) for a driver of CUDA 12.6."""
        number = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def _text(self, status: int) -> str:
        text = ctypes.c_char_p()
        function = getattr(self._lib, "cuGetErrorString", None)
        if function is None or function(status, ctypes.byref(text)) or text.value is None:
            return "unknown error"
        return text.value.decode()


class Device:
    """One GPU, whose primary context is made current in the calling thread. Close it, or use it in a `with`.

    Raises PluginError where there is no driver or no such GPU.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self.driver = Driver()
        self._handle, self._context = ctypes.c_int(), ctypes.c_void_p()
        try:
            self.driver.call("cuInit", 0)
            self.driver.call("cuDeviceGet", ctypes.byref(self._handle), ordinal)
        except CudaError as e:
            raise PluginError(f"GPU {ordinal} cannot be used ({e}): check with nvidia-smi.") from e
        self.driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._handle)
        self.make_current()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the context; memory and streams made of it are gone then."""
        if self._context:
            self.driver.call("cuDevicePrimaryCtxRelease_v2", self._handle)
            self._context = ctypes.c_void_p()

    def make_current(self) -> None:
        """Bind the context to the calling thread, as every other thread that uses the device must."""
        self.driver.call("cuCtxSetCurrent", self._context)

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.driver.call("cuDeviceGetName", text, len(text), self._handle)
        return text.value.decode()

    @property
    def capability(self) -> str:
        """Compute capability, "8.7"."""
        return f"{self.attribute(_MAJOR)}.{self.attribute(_MINOR)}"

    @property
    def processors(self) -> int:
        """Number of multiprocessors."""
        return self.attribute(_PROCESSORS)

    def attribute(self, number: int) -> int:
        """A CUdevice_attribute by its number."""
        value = ctypes.c_int()
        self.driver.call("cuDeviceGetAttribute", ctypes.byref(value), number, self._handle)
        return value.value

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> Memory:
        """`size` bytes, of whatever content. Raises PluginError where they do not fit."""
        return Memory(self, size)

    def upload(self, values: Array) -> Memory:
        """A copy of an array of any dtype, in C order."""
        memory = Memory(self, values.nbytes)
        memory.write(values)
        return memory

    def stream(self) -> Stream:
        return Stream(self)

    def event(self) -> Event:
        return Event(self)

    def synchronize(self) -> None:
        """Wait for all work of the context."""
        self.driver.call("cuCtxSynchronize")


class Memory:
    """Device memory: `pointer` is its address (256-byte aligned; 0 for no bytes), `size` its bytes.

    Freed by `free`, or when nothing refers to it any more.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device, self.size, self.pointer = device, size, 0
        address = ctypes.c_uint64()
        if size:
            try:
                device.driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
            except CudaError as e:
                if e.status != _OUT_OF_MEMORY:
                    raise
                free, total = device.memory()
                raise PluginError(
                    f"{size / 2**20:.0f} MiB do not fit into the GPU's memory, of which {free / 2**20:.0f} of "
                    f"{total / 2**20:.0f} MiB are free: close other programs or use fewer rows."
                ) from e
        self.pointer = address.value

    def write(self, values: Array) -> None:
        """Copy an array's bytes to the beginning. Raises ValueError where they are too many."""
        data = np.ascontiguousarray(values)
        if data.nbytes > self.size:
            raise ValueError(f"{data.nbytes} bytes do not fit into {self.size}")
        if data.nbytes:
            self._call("cuMemcpyHtoD_v2", ctypes.c_void_p(data.ctypes.data), data.nbytes)

    def read(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        """The beginning as an array; waits for the default stream. Raises ValueError where it is too short."""
        out: Array = np.empty(shape, dtype)
        if out.nbytes > self.size:
            raise ValueError(f"{out.nbytes} bytes cannot be read from {self.size}")
        if out.nbytes:
            arguments = (ctypes.c_void_p(out.ctypes.data), ctypes.c_uint64(self.pointer), ctypes.c_size_t(out.nbytes))
            self._device.driver.call("cuMemcpyDtoH_v2", *arguments)
        return out

    def fill(self, byte: int) -> None:
        """Set every byte."""
        if self.size:
            self._call("cuMemsetD8_v2", ctypes.c_ubyte(byte), self.size)

    def free(self) -> None:
        if self.pointer:
            self._device.driver.call("cuMemFree_v2", ctypes.c_uint64(self.pointer))
            self.pointer = 0

    def __del__(self) -> None:
        # Where the context is gone, its memory is too.
        if getattr(self, "pointer", 0) and self._device._context:
            self.free()

    def _call(self, name: str, value: Any, size: int) -> None:
        self._device.driver.call(name, ctypes.c_uint64(self.pointer), value, ctypes.c_size_t(size))


class Stream:
    """A stream that does not wait for the default one; `handle` is its CUstream."""

    def __init__(self, device: Device) -> None:
        self._device, self._stream = device, ctypes.c_void_p()
        device.driver.call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    @property
    def handle(self) -> int:
        return self._stream.value or 0

    def synchronize(self) -> None:
        self._device.driver.call("cuStreamSynchronize", self._stream)

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """What the block enqueues on this stream is not run but recorded: the graph is ready when the block ends."""
        graph = Graph(self._device)
        self._device.driver.call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        recorded = ctypes.c_void_p()
        try:
            yield graph
        except BaseException:
            with suppress(CudaError):  # the block's own error says more than that the capture is broken
                self._device.driver.call("cuStreamEndCapture", self._stream, ctypes.byref(recorded))
                self._device.driver.call("cuGraphDestroy", recorded)
            raise
        self._device.driver.call("cuStreamEndCapture", self._stream, ctypes.byref(recorded))
        graph._instantiate(recorded)

    def close(self) -> None:
        if self._stream:
            self._device.driver.call("cuStreamDestroy_v2", self._stream)
            self._stream = ctypes.c_void_p()


class Graph:
    """Recorded work, to be replayed as a whole (Stream.capture)."""

    def __init__(self, device: Device) -> None:
        self._device, self._executable = device, ctypes.c_void_p()

    def _instantiate(self, recorded: ctypes.c_void_p) -> None:
        options = ctypes.c_uint64(0)
        try:
            self._device.driver.call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), recorded, options)
        finally:
            self._device.driver.call("cuGraphDestroy", recorded)

    def launch(self, stream: Stream) -> None:
        self._device.driver.call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.handle))

    def close(self) -> None:
        if self._executable:
            self._device.driver.call("cuGraphExecDestroy", self._executable)
            self._executable = ctypes.c_void_p()


class Event:
    """A point in a stream's work, for timing."""

    def __init__(self, device: Device) -> None:
        self._device, self._event = device, ctypes.c_void_p()
        device.driver.call("cuEventCreate", ctypes.byref(self._event), 0)

    def record(self, stream: Stream) -> None:
        self._device.driver.call("cuEventRecord", self._event, ctypes.c_void_p(stream.handle))

    def synchronize(self) -> None:
        self._device.driver.call("cuEventSynchronize", self._event)

    def milliseconds_since(self, earlier: Event) -> float:
        """Between two recorded events that have passed; about half a microsecond exact."""
        elapsed = ctypes.c_float()
        self._device.driver.call("cuEventElapsedTime", ctypes.byref(elapsed), earlier._event, self._event)
        return elapsed.value

    def close(self) -> None:
        if self._event:
            self._device.driver.call("cuEventDestroy_v2", self._event)
            self._event = ctypes.c_void_p()
