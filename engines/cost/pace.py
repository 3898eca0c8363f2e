"""How fast this machine is from moment to moment: on a shared host that changes by half within a second.

A fixed piece of work is timed right before and right after what is measured. Where both took the same, and about what
they took mostly, the machine kept its usual pace meanwhile, and the time is told in units of that work: two such times
compare, whenever each was taken. (At another pace they compare less: products and memory do not slow down alike.)
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LOOKS = 3  # times that the fixed work is done for a look
TRIES = 6  # of a measurement, until the pace is the usual one before and after it
STEADY = 0.1  # by so much (of its logarithm) the two may differ
LIKE = 0.15  # and their mean from what is usual
RECENT = 1000  # looks that say what is usual


class Pace:
    """The machine's pace with `threads` threads (None: one per core). `looks`: seconds that the fixed work took."""

    def __init__(self, threads: int | None) -> None:
        self.looks: list[float] = []
        self._clock = clock(threads)
        self._session, self._feeds = _fixed_work(threads)

    @property
    def usual(self) -> float:
        """The median of all looks so far, in seconds."""
        return statistics.median(self.looks or [self.look()])

    @property
    def frequent(self) -> float:
        """Where recent looks lie closest together, in seconds: the middle of the shortest interval with half of them
        (Rousseeuw, Least Median of Squares Regression, 1984). On a host with two paces the median may be neither."""
        looks = sorted(self.looks[-RECENT:])
        half = (len(looks) + 1) // 2
        start = min(range(len(looks) - half + 1), key=lambda i: looks[i + half - 1] / looks[i])
        return math.sqrt(looks[start] * looks[start + half - 1])

    def look(self) -> float:
        """Seconds of the fixed work now."""
        taken = []
        for _ in range(LOOKS):
            start = self._clock()
            self._session.run(None, self._feeds)
            taken.append(self._clock() - start)
        self.looks.append(statistics.median(taken))
        return self.looks[-1]

    def relative(self, measure: Callable[[], Any]) -> Any:
        """What `measure` returns, seconds or an array of them, in units of the fixed work at that time.

        It is called again where the pace changed meanwhile or is not the frequent one; of TRIES calls the one counts
        that is nearest to that.
        """
        best, found = math.inf, None
        for _ in range(TRIES):
            before = self.look()
            seconds = measure()
            after = self.look()
            pace = math.sqrt(before * after)
            off = max(abs(math.log(after / before)) / STEADY, abs(math.log(pace / self.frequent)) / LIKE)
            if off < best:
                best, found = off, np.asarray(seconds) / pace
            if off < 1:
                break
        return found


def clock(threads: int | None) -> Callable[[], float]:
    """One thread is timed by its own CPU time, which other processes do not lengthen; several by the clock."""
    return time.thread_time if threads == 1 else time.perf_counter


def _fixed_work(threads: int | None) -> tuple[Any, dict[str, np.ndarray]]:
    """Products, elementwise nodes, copies, and nodes that are next to nothing; all of it at hand in a core's own
    cache."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rows, width = 64, 256
    values = np.resize(np.linspace(-0.5, 0.5, 97, dtype=np.float32), (width, width))
    nodes: list[Any] = []
    name = "x"
    for i in range(16):
        kinds = ["MatMul"] if i < 2 else ["Sigmoid", "Transpose", "Transpose", "Shape", "Shape", "Shape"]
        for kind in kinds:
            inputs = [name, "w"] if kind == "MatMul" else [name]
            output = f"y{len(nodes)}"
            nodes.append(helper.make_node(kind, inputs, [output]))
            name = name if kind == "Shape" else output
    nodes.append(helper.make_node("Shape", [name], ["done"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "pace",
        [value("x", TensorProto.FLOAT, [rows, width])], [value("done", TensorProto.INT64, None)],
        [numpy_helper.from_array(values, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": values[:rows]}
    session.run(None, feeds)
    return session, feeds
