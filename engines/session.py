"""One ONNX graph of an artifact in onnxruntime: arrays in by name, arrays out by name, every call timed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifact.errors import UserError
from engines.external import pieces

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


class Session:
    """The graph in `model`, opened at its first call or by `open`.

    `name` is what messages call it; `threads` bounds onnxruntime's threads within one operator (None: one per core).
    With `check_finite`, a NaN or infinity in an output is a UserError and not a black image.
    """

    def __init__(self, model: Path, name: str, threads: int | None = None, check_finite: bool = True) -> None:
        self.model, self.name, self.threads, self.check_finite = Path(model), name, threads, check_finite
        self.latencies_ms: list[float] = []  # one per call, in order
        self._session: Any = None

    def open(self) -> Session:
        """Read the graph and its weights. Raises UserError where onnxruntime refuses the file."""
        if self._session is None:
            self._session = _open(self.model, self.name, self.threads)
            self._inputs = {i.name: _DTYPES.get(i.type) for i in self._session.get_inputs()}
            self._outputs = [o.name for o in self._session.get_outputs()]
        return self

    def close(self) -> None:
        """Free the graph; the next call opens it again."""
        self._session = None

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
        the graph does not take, and (with `check_finite`) for outputs that are not finite.
        """
        names = self.inputs
        if set(feeds) != set(names):
            raise UserError(
                f"The graph of {self.name!r} takes {', '.join(names)} but was given {', '.join(feeds)}: "
                "the artifact does not fit this pipeline; rebuild it."
            )
        cast = {n: np.ascontiguousarray(feeds[n], self._inputs[n] or feeds[n].dtype) for n in names}
        start = time.perf_counter()
        try:
            values = self._session.run(None, cast)
        except Exception as e:  # onnxruntime's exceptions share no base class of their own
            shapes = ", ".join(f"{n} {list(v.shape)}" for n, v in cast.items())
            raise UserError(
                f"The graph of {self.name!r} failed on {shapes} ({_first_line(e)}): choose a size or a prompt length "
                "that the artifact was built for."
            ) from e
        self.latencies_ms.append((time.perf_counter() - start) * 1e3)
        values = [v.astype(np.float32) if v.dtype == np.float16 else v for v in values]
        if self.check_finite:
            self._refuse_nonfinite(values)
        return dict(zip(self.outputs, values, strict=True))

    def _refuse_nonfinite(self, values: list[np.ndarray]) -> None:
        for name, value in zip(self.outputs, values, strict=True):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise UserError(
                    f"Output {name!r} of {self.name!r} holds NaN or infinity in call {len(self.latencies_ms)}: "
                    "its numbers overflow 16 bits or the weights are damaged; rebuild the artifact with float32."
                )


def _open(model: Path, name: str, threads: int | None) -> Any:
    import onnxruntime as ort

    if not model.is_file():
        raise UserError(f"{model} is missing: copy the artifact again or rebuild it.")
    pieces(model)  # refuses weights outside the model's directory, whatever onnxruntime thinks of them
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(*_EXACT_MATMUL)
    if threads:
        options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in ort.get_available_providers()]
    try:
        return ort.InferenceSession(str(model), options, providers=providers)
    except Exception as e:
        raise UserError(
            f"onnxruntime {ort.__version__} refuses {model}, the graph of {name!r} ({_first_line(e)}): "
            "rebuild the artifact, or install the onnxruntime that its manifest names."
        ) from e


def _first_line(error: Exception) -> str:
    """onnxruntime's message without its trailing listings, at most 300 characters."""
    text = str(error).strip().splitlines()
    return text[0].removeprefix("[ONNXRuntimeError] : ")[:300] if text else type(error).__name__
