"""One TensorRT plan as something to call: arrays in by name, arrays out by name, every call timed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifact.errors import UserError
from plugins.device import Device, Memory

PLUGIN_NAME, PLUGIN_VERSION = "SvdqLinear", "1"


class Runtime:
    """TensorRT and the GPU of this process. `tensorrt` "10.3.0", `sm` "87"."""

    def __init__(self, trt: Any) -> None:
        self.trt, self.device = trt, Device()
        self.logger = trt.Logger(trt.Logger.WARNING)
        self.tensorrt = ".".join(trt.__version__.split(".")[:3])
        self.sm = self.device.capability.replace(".", "")
        self.stream = self.device.stream()
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(self.logger, "")
        self._runtime = trt.Runtime(self.logger)

    def load_plugin(self, path: Path) -> None:
        """Make TensorRT know the plugin. Raises UserError where it refuses the library."""
        registry = self.trt.get_plugin_registry()
        get = getattr(registry, "get_creator", None) or registry.get_plugin_creator
        if get(PLUGIN_NAME, PLUGIN_VERSION, "") is None:
            if not path.is_file():
                raise UserError(f"There is no plugin library {path}: run build.sh on this device first.")
            if hasattr(registry, "load_library"):
                registry.load_library(str(path))
            else:  # TensorRT 8.5: the library registers itself
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        if get(PLUGIN_NAME, PLUGIN_VERSION, "") is None:
            raise UserError(f"TensorRT {self.tensorrt} found no {PLUGIN_NAME} in {path}: run build.sh again.")

    def deserialize(self, plan: Path) -> Any:
        """The engine in `plan`. Raises UserError where TensorRT refuses it."""
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise UserError(
                f"TensorRT {self.tensorrt} refuses {plan} (out of memory, or not built on this device): close other "
                "programs, or delete it and run build.sh again."
            )
        return engine


class Engine:
    """The plan opened on a runtime; buffers are kept from call to call. Use it in a `with` block.

    `latencies_ms`: wall time of every call from its first copy to its last. `look` is called when memory was taken.
    """

    def __init__(self, runtime: Runtime, plan: Path, name: str, look: Callable[[], None]) -> None:
        self.name, self.latencies_ms = name, list[float]()
        self._runtime, self._look = runtime, look
        self._engine = runtime.deserialize(plan)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise UserError(f"There is no memory for the activations of {name!r}: close other programs.")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = runtime.trt.TensorIOMode.INPUT
        self.inputs = [n for n in names if self._engine.get_tensor_mode(n) == given]
        self.outputs = [n for n in names if n not in self.inputs]
        self._buffers: dict[str, Memory] = {}
        look()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine, its context and its buffers."""
        for memory in self._buffers.values():
            memory.free()
        self._buffers, self._context, self._engine = {}, None, None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; float16 ones come back as float32.

        Feeds are cast to the engine's own dtypes. Raises UserError for wrong names, for shapes outside the profile and
        for outputs that are not finite.
        """
        if set(feeds) != set(self.inputs):
            raise UserError(
                f"The engine of {self.name!r} takes {', '.join(self.inputs)} but was given {', '.join(feeds)}: "
                "keep a bundle's files together."
            )
        start = time.perf_counter()
        for name in self.inputs:
            self._feed(name, feeds[name])
        results = {name: self._space(name) for name in self.outputs}
        if not self._context.execute_async_v3(self._runtime.stream.handle):
            raise UserError(f"TensorRT could not run {self.name!r} (its reason is above): see README.md.")
        self._runtime.stream.synchronize()
        found = {n: self._buffers[n].read(dtype, shape) for n, (dtype, shape) in results.items()}
        self.latencies_ms.append((time.perf_counter() - start) * 1e3)
        self._look()
        for name, value in found.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise UserError(
                    f"Output {name!r} of {self.name!r} holds NaN or infinity in call {len(self.latencies_ms)}: its "
                    "numbers overflow 16 bits; build the artifact with --dtype float32."
                )
        return {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in found.items()}

    def _feed(self, name: str, value: np.ndarray) -> None:
        array = np.ascontiguousarray(value, self._dtype(name))
        if not self._context.set_input_shape(name, array.shape):
            raise UserError(
                f"The engine of {self.name!r} was not built for {name} of shape {list(array.shape)}: draw at the "
                "bundle's own size."
            )
        self._buffer(name, array.nbytes).write(array)

    def _space(self, name: str) -> tuple[Any, tuple[int, ...]]:
        shape, dtype = tuple(self._context.get_tensor_shape(name)), self._dtype(name)
        self._buffer(name, int(np.prod(shape)) * dtype.itemsize)
        return dtype, shape

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._runtime.trt.nptype(self._engine.get_tensor_dtype(name)))

    def _buffer(self, name: str, size: int) -> Memory:
        if name not in self._buffers or self._buffers[name].size < size:
            if name in self._buffers:
                self._buffers[name].free()
            self._buffers[name] = self._runtime.device.allocate(size)
            self._context.set_tensor_address(name, self._buffers[name].pointer)
        return self._buffers[name]
