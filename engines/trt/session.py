"""One plan of an artifact in TensorRT: arrays in by name, arrays out by name, as engines/session.py on onnxruntime.

TensorRT is given addresses and a stream, both made by plugins/device.py through the driver: neither torch nor another
package for CUDA is needed. Buffers are made once for a set of shapes and the work recorded as a CUDA graph, so that a
step of the same shapes is one launch. Python API of TensorRT 10.3 and later (ICudaEngine, IExecutionContext).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.backends import timed
from engines.faults import OutOfMemory, is_out_of_memory, refuse_names, refuse_nonfinite
from engines.trt import plugin
from engines.trt.plan import Plan, mapped
from engines.trt.versions import Version, of_module, python_module
from plugins.device import CudaError, Device, Graph, Memory, Stream
from plugins.errors import PluginError
from plugins.library import load_into_tensorrt

Shapes = tuple[tuple[int, ...], ...]


class PlanSession:
    """The engine of `plan`, opened at its first call or by `open`; `plan` comes from `engines.trt.plan.find`.

    `name` is what messages call it. With `check_finite`, a NaN or infinity in an output is an error and not a black
    image. With `stream_weights`, set before it is opened, the weights stay in the host's memory and are copied in while
    a step runs, for an engine that was built for it (`can_stream`): the least device memory, and the slowest, if not
    for `kept_weights` bytes of them that stay on the device all the same.
    """

    def __init__(self, artifact: Artifact, plan: Plan, name: str, check_finite: bool = True) -> None:
        self.artifact, self.plan, self.name, self.check_finite = artifact, plan, name, check_finite
        self.latencies_ms: list[float] = []
        self._calls = 0
        self.stream_weights, self.kept_weights = False, 0
        self._device: Device | None = None
        self._stream: Stream | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._inputs: dict[str, np.dtype[Any]] = {}
        self._outputs: dict[str, np.dtype[Any]] = {}
        self._bound: _Bound | None = None

    @property
    def can_stream(self) -> bool:
        """Whether the engine was built for streaming its weights."""
        return bool(self.plan.metadata["weight_streaming"])

    def open(self) -> PlanSession:
        """Read the engine into the device's memory.

        Raises UserError where TensorRT refuses it, where `stream_weights` is asked of an engine that cannot, and where
        the plugin's library is missing; OutOfMemory where it does not fit.
        """
        if self._engine is None:
            try:
                self._open()
            except BaseException as e:
                self.close()
                if is_out_of_memory(e):
                    raise OutOfMemory(
                        f"The engine of {self.name!r} does not fit into the GPU's memory: {OutOfMemory.ADVICE}"
                    ) from e
                raise
        return self

    def close(self) -> None:
        """Free the engine, its buffers and its stream; the next call opens it again."""
        device, self._device = self._device, None
        if device is None:
            return
        device.make_current()  # another thread may have opened it
        if self._bound is not None:
            self._bound.close()
        # In this order: a context needs its engine, an engine its runtime.
        self._bound = self._context = self._engine = self._runtime = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        device.close()

    @property
    def inputs(self) -> list[str]:
        """Names of the engine's inputs, in its order."""
        self.open()
        return list(self._inputs)

    @property
    def outputs(self) -> list[str]:
        """Names of the engine's outputs, in its order."""
        self.open()
        return list(self._outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; float16 ones come back as float32.

        Feeds are cast to the engine's own dtypes. Raises UserError for a missing or an unknown input and for shapes
        outside the engine's profile, NotFinite (with `check_finite`) for outputs that are not finite, OutOfMemory.
        """
        self.open()
        assert self._device is not None
        self._device.make_current()
        refuse_names(self.name, list(self._inputs), feeds)
        cast = {n: np.ascontiguousarray(feeds[n], dtype) for n, dtype in self._inputs.items()}
        shapes: Shapes = tuple(v.shape for v in cast.values())
        start = time.perf_counter()
        try:
            if self._bound is None or self._bound.shapes != shapes:
                self._refuse_shapes(cast)
                if self._bound is not None:
                    self._bound.close()
                    self._bound = None  # free the old buffers before the new ones are made
                self._bound = _Bound(self, shapes, cast)
            found = self._bound.run(cast)
        except (PluginError, CudaError) as e:
            listed = ", ".join(f"{n} {list(v.shape)}" for n, v in cast.items())
            if is_out_of_memory(e):
                raise OutOfMemory(f"{self.name!r} ran out of the GPU's memory on {listed}: {OutOfMemory.ADVICE}") from e
            raise UserError(
                f"The engine of {self.name!r} failed on {listed} ({e}): check the GPU with nvidia-smi, then build the "
                "engines again."
            ) from e
        timed(self.latencies_ms, time.perf_counter() - start)
        self._calls += 1
        found = {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in found.items()}
        if self.check_finite:
            refuse_nonfinite(self.name, found, self._calls)
        return found

    def _open(self) -> None:
        trt = python_module()
        version = of_module()
        if trt is None or version is None:
            raise UserError("The Python package tensorrt does not load here: install TensorRT, or use onnxruntime.")
        self._device = Device()
        self._stream = self._device.stream()
        self._load_plugin(trt, version)
        self._said = _listener(trt)
        self._runtime = trt.Runtime(self._said)
        # A library that travels in the plan is code: TensorRT runs it only where that is allowed.
        self._runtime.engine_host_code_allowed = bool(self.plan.metadata["plugin_in_plan"])
        with mapped(self.plan.path) as content:
            self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._refused("TensorRT refuses the engine")
        if self.stream_weights:
            self._stream_weights()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._refused("TensorRT cannot run the engine")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        dtypes = {n: np.dtype(trt.nptype(self._engine.get_tensor_dtype(n))) for n in names}
        self._inputs = {n: dtypes[n] for n in given}
        self._outputs = {n: dtypes[n] for n in names if n not in given}

    def _load_plugin(self, trt: Any, version: Version) -> None:
        """The plugin's library must be known to TensorRT before the engine is read."""
        built = self.plan.metadata
        if built["plugin_sha256"] and not built["plugin_in_plan"]:
            try:
                load_into_tensorrt(trt, plugin.path_in(self.artifact, built["sm"], version))
            except PluginError as e:
                raise UserError(str(e)) from e

    def _stream_weights(self) -> None:
        """Weights beyond the budget stay on the device no longer than they are needed there."""
        if not self.can_stream:
            raise UserError(
                f"{self.plan.path.name} was not built for streaming its weights: build the engines again with "
                "--weight-streaming, or choose --memory pipelined."
            )
        self._engine.weight_streaming_budget_v2 = min(self.kept_weights, self._engine.streamable_weights_size)

    def _refused(self, what: str) -> Exception:
        """The error for a None of TensorRT's, in the words of its log."""
        words = self._said.words or "without a reason"
        if is_out_of_memory(RuntimeError(words)):
            return OutOfMemory(words)
        return UserError(f"{what} {self.plan.path.name} ({words}): build the engines again with engines.build.")

    def _refuse_shapes(self, cast: Mapping[str, np.ndarray]) -> None:
        """Raises UserError where an input is outside the range that the engine was built for, and says the range."""
        for name, built in self.plan.metadata["profiles"][0].items():
            shape, low, high = cast[name].shape, built["min"], built["max"]
            if len(low) != len(shape) or any(not a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                raise UserError(
                    f"Input {name!r} of {self.name!r} is {list(shape)} and its engine was built for {low} to {high}: "
                    "choose a size, a batch or a prompt length within that, or build the engines for this one."
                )


class _Bound:
    """Device buffers for one set of shapes, their addresses given to the context, and the recorded step."""

    def __init__(self, session: PlanSession, shapes: Shapes, cast: Mapping[str, np.ndarray]) -> None:
        assert session._device is not None and session._stream is not None
        self.shapes, self._session = shapes, session
        self._device, self._stream, self._context = session._device, session._stream, session._context
        self._memory: dict[str, Memory] = {}
        self._made: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._graph: Graph | None = None
        self._calls = 0
        try:
            for name, value in cast.items():
                if not self._context.set_input_shape(name, value.shape):
                    raise session._refused(f"TensorRT does not take {name} {list(value.shape)} for")
                self._bind(name, value.nbytes)
            for name, dtype in session._outputs.items():
                shape = tuple(self._context.get_tensor_shape(name))
                if min(shape, default=0) < 0:
                    raise session._refused(f"The shape of output {name!r} depends on values in")
                self._made[name] = (shape, dtype)
                self._bind(name, int(np.prod(shape)) * dtype.itemsize)
        except BaseException:
            self.close()
            raise

    def run(self, cast: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first call runs as it is (TensorRT prepares itself), the second is recorded, the others are replayed."""
        for name, value in cast.items():
            self._memory[name].write(value)
        self._device.synchronize()  # a copy from pageable memory may return before it has arrived
        self._calls += 1
        if self._calls == 2:
            self._record()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
        self._stream.synchronize()
        return {n: self._memory[n].read(dtype, shape) for n, (shape, dtype) in self._made.items()}

    def close(self) -> None:
        """Free the recorded step and the buffers."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for memory in self._memory.values():
            memory.free()
        self._memory.clear()

    def _bind(self, name: str, size: int) -> None:
        self._memory[name] = self._device.allocate(size)
        self._context.set_tensor_address(name, self._memory[name].pointer)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._session._refused("TensorRT failed to run")

    def _record(self) -> None:
        """Work that cannot be recorded (a loop on the host, say) is enqueued at every call instead."""
        try:
            with self._stream.capture() as graph:
                self._enqueue()
            self._graph = graph
        except (CudaError, UserError):
            self._graph = None


def _listener(trt: Any) -> Any:
    """A TensorRT logger that prints nothing and keeps the last error as `words`."""

    class Listener(trt.ILogger):
        words = ""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.words = " ".join(message.split())[:300]

    return Listener()
