"""A tensorrt module for machines without one: the Python API as far as run.py calls it.

A plan is JSON that names an ONNX file. It runs in a process of its own (worker.py), so that the process under test
imports nothing but what a device has. Memory is that of tests/plugins/stand_in/libcuda.c.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

__version__ = os.environ.get("STAND_IN_TENSORRT", "10.3.0")
SHIFT = 0x100000000000  # of libcuda.c's addresses


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


def nptype(dtype: Any) -> Any:
    return dtype


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return namespace == ""


class Logger:
    WARNING = 2

    def __init__(self, severity: int) -> None: ...


class _Registry:
    loaded: str | None = None

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return self if self.loaded and (name, version, namespace) == ("SvdqLinear", "1", "") else None

    def load_library(self, path: str) -> None:
        if Path(path).read_bytes():  # an empty file is a library that TensorRT refuses
            self.loaded = path


_registry = _Registry()


def get_plugin_registry() -> _Registry:
    return _registry


class _Worker:
    """The other process; one message in, one out."""

    process: Any = None

    def ask(self, *message: Any) -> Any:
        if self.process is None:
            worker = Path(os.environ["STAND_IN_WORKER"])
            environment = {**os.environ, "PYTHONPATH": str(worker.parents[4])}
            command = [os.environ["STAND_IN_PYTHON"], str(worker)]
            self.process = subprocess.Popen(command, stdin=-1, stdout=-1, env=environment)
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)


_worker = _Worker()


class Runtime:
    def __init__(self, logger: Logger) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        about = json.loads(plan)
        if about["plugin"] and _registry.loaded is None:
            sys.stderr.write("[TRT] [E] no creator of SvdqLinear\n")
            return None
        return _Engine(about["onnx"], about["min"], about["max"])


class _Engine:
    def __init__(self, onnx: str, least: dict[str, list[int]], most: dict[str, list[int]]) -> None:
        self.onnx, self.least, self.most = onnx, least, most
        self.tensors: dict[str, tuple[str, str]] = _worker.ask("open", onnx)  # name: (mode, dtype)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, i: int) -> str:
        return list(self.tensors)[i]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self.tensors[name][0]]

    def get_tensor_dtype(self, name: str) -> Any:
        return np.dtype(self.tensors[name][1])

    def create_execution_context(self) -> Any:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        least, most = (bounds.get(name, shape) for bounds in (self.engine.least, self.engine.most))
        within = len(least) == len(shape) and all(a <= d <= b for a, d, b in zip(least, shape, most, strict=True))
        return within and _worker.ask("fits", self.engine.onnx, name, tuple(shape))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _worker.ask("shape", self.engine.onnx, name, self.shapes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {}
        for name, shape in self.shapes.items():
            value = np.empty(shape, self.engine.get_tensor_dtype(name))
            ctypes.memmove(value.ctypes.data, self.addresses[name] - SHIFT, value.nbytes)
            feeds[name] = value
        for name, value in _worker.ask("run", self.engine.onnx, feeds).items():
            value = np.ascontiguousarray(value)
            ctypes.memmove(self.addresses[name] - SHIFT, value.ctypes.data, value.nbytes)
        return stream != 0
