"""One ONNX graph of an artifact in onnxruntime: arrays in by name, arrays out by name, every call timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifact.errors import UserError
from engines.backends import timed
from engines.external import pieces
from engines.faults import OutOfMemory, is_out_of_memory, refuse_names, refuse_nonfinite
from engines.placement import Placement, read_profile

# What the graph's inputs may be, and the numpy dtype that a feed is cast to.
_DTYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
# Without this, onnxruntime turns a 4-bit weight's DequantizeLinear + MatMul into MatMulNBits at accuracy level 4,
# which quantises the activations to 8 bits: 5e-3 relative error instead of 2e-7.
_EXACT_MATMUL = ("session.qdq_matmulnbits_accuracy_level", "1")
_ERRORS_ONLY = 3  # onnxruntime's log severity
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Session:
    """The graph in `model`, opened at its first call or by `open`.

    `name` is what messages call it; `threads` bounds onnxruntime's threads within one operator (None: one per core).
    With `check_finite`, a NaN or infinity in an output is a UserError and not a black image. `placement` says after the
    first call which nodes ran where; it is None where only the CPU computes, unless `profiled`.
    """

    def __init__(
        self,
        model: Path,
        name: str,
        threads: int | None = None,
        check_finite: bool = True,
        profiled: bool = False,
    ) -> None:
        self.model, self.name, self.threads, self.check_finite = Path(model), name, threads, check_finite
        self.latencies_ms: list[float] = []
        self._calls = 0
        self.placement: Placement | None = None
        self._profiled = profiled
        self._session: Any = None
        self._bound: _Bound | None = None

    def open(self) -> Session:
        """Read the graph and its weights.

        Raises UserError where onnxruntime refuses the file, OutOfMemory where it does not fit.
        """
        if self._session is None:
            self._session = self._opened()
            self._inputs = {i.name: _DTYPES.get(i.type) for i in self._session.get_inputs()}
            self._outputs = [o.name for o in self._session.get_outputs()]
        return self

    def close(self) -> None:
        """Free the graph and the buffers; the next call opens it again."""
        self._bound = self._session = None

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs, in its order."""
        return list(self.open()._inputs)

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs, in its order."""
        return self.open()._outputs

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; float16 ones come back as float32.

        Feeds are cast to the graph's own dtypes. Raises UserError for a missing or an unknown input, for shapes that
        the graph does not take, and (with `check_finite`) for outputs that are not finite; OutOfMemory where what lies
        between the layers does not fit.
        """
        names = self.inputs
        refuse_names(self.name, names, feeds)
        cast = {n: np.ascontiguousarray(feeds[n], self._inputs[n] or feeds[n].dtype) for n in names}
        start = time.perf_counter()
        try:
            values = self._compute(cast)
        except Exception as e:  # onnxruntime's exceptions share no base class of their own
            self._bound = None
            shapes = ", ".join(f"{n} {list(v.shape)}" for n, v in cast.items())
            if is_out_of_memory(e):
                raise OutOfMemory(
                    f"The graph of {self.name!r} ran out of memory on {shapes}: {OutOfMemory.ADVICE}"
                ) from e
            raise UserError(
                f"The graph of {self.name!r} failed on {shapes} ({_first_line(e)}): choose a size or a prompt length "
                "that the artifact was built for."
            ) from e
        timed(self.latencies_ms, time.perf_counter() - start)
        self._calls += 1
        self._read_placement()
        found = dict(zip(self._outputs, values, strict=True))
        if self.check_finite:
            refuse_nonfinite(self.name, found, self._calls)
        return found

    def _compute(self, cast: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run on buffers that were bound when these shapes came first."""
        key = tuple((v.shape, v.dtype.str) for v in cast.values())
        if self._bound is None or self._bound.key != key:
            self._bound = None  # free the old buffers first
            self._bound = _Bound(self._session, self._device, key, cast)
        return self._bound.run(cast, self._outputs)

    def _opened(self) -> Any:
        import onnxruntime as ort

        if not self.model.is_file():
            raise UserError(f"{self.model} is missing: copy the artifact again or rebuild it.")
        pieces(self.model)  # refuses weights outside the model's directory, whatever onnxruntime thinks of them
        providers = [p for p in (_CUDA, _CPU) if p in ort.get_available_providers()]
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry(*_EXACT_MATMUL)
        if self.threads:
            options.intra_op_num_threads = self.threads
        if self.placement is None and (self._profiled or _CUDA in providers):
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.gettempdir()) / f"svdq-{self.name}")
        try:
            session = ort.InferenceSession(str(self.model), options, providers=providers)
        except Exception as e:
            if is_out_of_memory(e):
                raise OutOfMemory(f"The graph of {self.name!r} does not fit into memory: {OutOfMemory.ADVICE}") from e
            raise UserError(
                f"onnxruntime {ort.__version__} refuses {self.model}, the graph of {self.name!r} ({_first_line(e)}): "
                "rebuild the artifact, or install the onnxruntime that its manifest names."
            ) from e
        self._profiling = options.enable_profiling
        self._device = "cuda" if _CUDA in session.get_providers() else "cpu"
        return session

    def _read_placement(self) -> None:
        """After the first call: which provider ran each node, from onnxruntime's own profile of that call."""
        if self._profiling:
            self._profiling = False
            profile = Path(self._session.end_profiling())
            self.placement = read_profile(profile)
            profile.unlink(missing_ok=True)


class _Bound:
    """Buffers for inputs of one set of shapes and for what comes of them, bound to the session once."""

    def __init__(self, session: Any, device: str, key: Any, cast: dict[str, np.ndarray]) -> None:
        import onnxruntime as ort

        self.key, self._session, self._device = key, session, device
        self._binding = session.io_binding()
        # On the CPU onnxruntime keeps the array itself: it must be one that nobody else writes.
        self._given = {n: ort.OrtValue.ortvalue_from_numpy(v.copy(), device, 0) for n, v in cast.items()}
        for name, value in self._given.items():
            self._binding.bind_ortvalue_input(name, value)
        self._made: list[Any] | None = None  # sizes of the outputs are known after the first run

    def run(self, cast: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        """Copies of the outputs, float16 as float32."""
        if self._made is None:
            for name in outputs:
                self._binding.bind_output(name, self._device)
        else:
            for name, value in cast.items():
                self._given[name].update_inplace(value)
        self._session.run_with_iobinding(self._binding)
        if self._made is None:
            self._made = self._binding.get_outputs()
            for name, made in zip(outputs, self._made, strict=True):
                self._binding.bind_ortvalue_output(name, made)
        values = [made.numpy() for made in self._made]
        return [v.astype(np.float32 if v.dtype == np.float16 else v.dtype) for v in values]


def _first_line(error: Exception) -> str:
    """onnxruntime's message without its trailing listings, at most 300 characters."""
    text = str(error).strip().splitlines()
    return text[0].removeprefix("[ONNXRuntimeError] : ")[:300] if text else type(error).__name__
