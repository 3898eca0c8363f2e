"""What runs a graph: one interface, onnxruntime or TensorRT behind it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from artifact.errors import UserError, nearest
from artifact.manifest import Artifact

BACKENDS = ("auto", "onnxruntime", "tensorrt")
RECENT = 10_000  # calls whose latencies a runner keeps: a server runs for months
log = logging.getLogger("engines")


class Runner(Protocol):
    """One graph: arrays in by name, arrays out by name. `latencies_ms`: of the calls, in order, at most RECENT.

    `run` returns float16 outputs as float32. It raises UserError for wrong names and shapes, NotFinite for outputs that
    hold NaN or infinity, OutOfMemory. `open` reads the weights and may be called by another thread than `run`; `close`
    frees everything, and the next call opens it again.
    """

    name: str
    latencies_ms: list[float]

    def open(self) -> Runner: ...
    def close(self) -> None: ...
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    @property
    def inputs(self) -> list[str]: ...
    @property
    def outputs(self) -> list[str]: ...


def timed(latencies_ms: list[float], seconds: float) -> None:
    """Append a call's latency, and forget the older half of too many."""
    if len(latencies_ms) >= RECENT:
        del latencies_ms[: RECENT // 2]
    latencies_ms.append(seconds * 1e3)


@runtime_checkable
class WeightStreaming(Protocol):
    """A runner that may keep its weights in the host's memory and stream them in while it computes.

    `can_stream`: whether its engine was built for that. Set before `open`: `stream_weights`, and `kept_weights`, bytes
    of them that stay on the device all the same.
    """

    stream_weights: bool
    kept_weights: int

    @property
    def can_stream(self) -> bool: ...


def choose_backend(artifact: Artifact, preset: str, backend: str) -> str:
    """ "onnxruntime" or "tensorrt"; "auto" takes TensorRT where every component has a plan that runs on this machine.

    Plans that are there but not for this machine are told of in the log. Raises UserError for an unknown backend, and
    where "tensorrt" is asked for and a plan is missing or is for another machine.
    """
    if backend not in BACKENDS:
        raise UserError(f"There is no backend {backend!r}: {nearest(backend, list(BACKENDS))}")
    if backend == "onnxruntime" or (backend == "auto" and not any(artifact.root.glob("engines/*.plan"))):
        return "onnxruntime"
    from engines.trt.plan import find
    from engines.trt.versions import python_module

    try:
        if python_module() is None:
            raise UserError(
                "The Python package tensorrt is not installed: install it as JetPack or NVIDIA's TensorRT guide says, "
                "or run on onnxruntime."
            )
        for component in artifact.manifest["components"]:
            find(artifact, component, preset)
    except UserError as e:
        if backend == "tensorrt":
            raise
        log.warning("TensorRT is not used: %s", e)
        return "onnxruntime"
    return "tensorrt"


def runner(artifact: Artifact, component: str, preset: str, backend: str, threads: int | None = None) -> Runner:
    """A closed runner for a component; `backend` as `choose_backend` returns it, `threads` for onnxruntime only.

    Raises UserError where the artifact has no such graph or plan.
    """
    if backend == "tensorrt":
        from engines.trt.plan import find
        from engines.trt.session import PlanSession

        return PlanSession(artifact, find(artifact, component, preset), component)
    from engines.session import Session

    return Session(artifact.model(component, preset), component, threads)
