"""A `tensorrt` module whose engines are ONNX files run by onnxruntime on the memory behind the addresses it is given.

It has what engines/trt/session.py calls, named and behaving as TensorRT 10.3's documentation says: None for an engine
that it refuses, with the reason in the logger; False for a shape outside the profile; work that is recorded while a
stream is captured.
A "plan" here is JSON: {"onnx": path, "profile": {input: [min, max]}, "needs_plugin": bool, "streamable": bytes,
"recordable": bool}.
"""

from __future__ import annotations

import ctypes
import json
import math
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHIFT = 0x100000000000  # of stand_in/libcuda.c
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Driver:
    """The stand-in libcuda, and the work that was enqueued through it."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        self.lib.stand_in_used.restype = ctypes.c_size_t
        self._work: list[weakref.WeakMethod[Callable[[], None]]] = []  # of contexts, which it must not keep alive
        self._perform = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda i: self._work[i]()())
        self.lib.stand_in_performs(self._perform)
        self.limit(64 << 20)

    def limit(self, count: int) -> None:
        """So many bytes of device memory in all."""
        self.lib.stand_in_total(ctypes.c_size_t(count))

    def enqueue(self, stream: int, work: Callable[[], None]) -> bool:
        self._work.append(weakref.WeakMethod(work))
        return self.lib.stand_in_enqueue(ctypes.c_void_p(stream), len(self._work) - 1) == 0


def module(driver: Driver, version: str = "10.3.0") -> Any:
    """The module, to be put into sys.modules; `events` lists plugin loads, deserialisations and ends of objects."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    events: list[str] = []

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class Registry:
        loaded: list[str] = []

        def get_creator(self, name: str, version: str, namespace: str) -> Any:
            return object() if self.loaded and (name, version, namespace) == ("SvdqLinear", "1", "") else None

        def load_library(self, path: str) -> None:
            self.loaded.append(path)
            events.append("plugin")

    class TensorIOMode:
        NONE, INPUT, OUTPUT = range(3)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            self.logger = logger

        def deserialize_cuda_engine(self, plan: Any) -> Any:
            events.append("deserialize")
            try:
                about = json.loads(bytes(memoryview(plan)))
            except ValueError:
                self.logger.log(ILogger.Severity.ERROR, "Serialization assertion magic tag failed.")
                return None
            if about.get("needs_plugin") and not Registry.loaded:
                self.logger.log(ILogger.Severity.ERROR, "Cannot find plugin: SvdqLinear, version: 1")
                return None
            if about.get("too_big"):
                self.logger.log(ILogger.Severity.ERROR, "[defaultAllocator.cpp] Cuda failure: 2 (out of memory)")
                return None
            return Engine(about, self.logger)

        def __del__(self) -> None:
            events.append("end of runtime")

    class Engine:
        def __init__(self, about: dict[str, Any], logger: ILogger) -> None:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.about, self.logger = about, logger
            self.session = ort.InferenceSession(about["onnx"], options, providers=["CPUExecutionProvider"])
            self.given = {i.name: i for i in self.session.get_inputs()}
            self.all = {**self.given, **{o.name: o for o in self.session.get_outputs()}}
            self.weight_streaming_budget_v2 = self.streamable_weights_size = about.get("streamable", 0)

        @property
        def num_io_tensors(self) -> int:
            return len(self.all)

        def get_tensor_name(self, index: int) -> str:
            return list(self.all)[index]

        def get_tensor_mode(self, name: str) -> int:
            return TensorIOMode.INPUT if name in self.given else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> str:
            return self.all[name].type

        def create_execution_context(self) -> Any:
            trt.budgets.append(self.weight_streaming_budget_v2)  # type: ignore[attr-defined]
            return Context(self)

        def __del__(self) -> None:
            events.append("end of engine")

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.shapes, self.addresses = engine, {}, {}
            self.capturable = engine.about.get("recordable", True)
            self.calls = 0

        shapes: dict[str, tuple[int, ...]]
        addresses: dict[str, int]

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, high = self.engine.about["profile"][name]
            if len(low) != len(shape) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                return False
            self.shapes = {n: s for n, s in self.shapes.items() if n in self.engine.given} | {name: tuple(shape)}
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name not in self.shapes:
                zeros = {n: np.zeros(self.shapes[n], _TYPES[i.type]) for n, i in self.engine.given.items()}
                made = self.engine.session.run(None, zeros)
                names = [o.name for o in self.engine.session.get_outputs()]
                self.shapes |= {n: v.shape for n, v in zip(names, made, strict=True)}
            return self.shapes[name]

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert address % 256 == 0 and address > SHIFT
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert set(self.addresses) == set(self.engine.all)
            self.calls += 1
            if self.calls == 2 and not self.capturable:  # in the capture
                return False
            return driver.enqueue(stream_handle, self._compute)

        def _compute(self) -> None:
            feeds = {n: self._array(n, _TYPES[i.type]).copy() for n, i in self.engine.given.items()}
            outputs = self.engine.session.get_outputs()
            for about, value in zip(outputs, self.engine.session.run(None, feeds), strict=True):
                self._array(about.name, value.dtype)[...] = value

        def _array(self, name: str, dtype: Any) -> np.ndarray:
            shape = self.shapes[name]
            size = math.prod(shape) * np.dtype(dtype).itemsize
            memory = (ctypes.c_char * size).from_address(self.addresses[name] - SHIFT)
            return np.frombuffer(memory, dtype).reshape(shape)

        def __del__(self) -> None:
            events.append("end of context")

    Registry.loaded = []
    found = {
        "ILogger": ILogger, "Runtime": Runtime, "TensorIOMode": TensorIOMode, "events": events, "budgets": [],
        "registry": Registry, "get_plugin_registry": Registry, "nptype": lambda dtype: _TYPES[dtype],
    }  # fmt: skip
    for name, value in found.items():
        setattr(trt, name, value)
    return trt
