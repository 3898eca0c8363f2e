"""What every backend says of the same faults: wrong inputs, numbers that are not finite, memory that is not enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from artifact.errors import UserError, ran_out_of_memory


class OutOfMemory(UserError):
    """A graph, or what it computes with, does not fit into the memory that is left.

    A pipeline answers by keeping fewer graphs at a time (engines/residency.py); who sees it, had none left to drop.
    """

    ADVICE = "close other programs, draw fewer or smaller images, or take a smaller preset."


class NotFinite(UserError):
    """An output of `component` holds NaN or infinity; `where` is "call 3", or "step 3 of 20" once that is known."""

    def __init__(self, component: str, output: str, where: str) -> None:
        super().__init__(
            f"Output {output!r} of {component!r} holds NaN or infinity in {where}: "
            "its numbers overflow 16 bits or the weights are damaged; rebuild the artifact with float32."
        )
        self.component, self.output = component, output


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out: ours, Python's, or the words of onnxruntime, CUDA or our driver."""
    return isinstance(error, OutOfMemory) or ran_out_of_memory(error)


def refuse_names(name: str, inputs: Collection[str], feeds: Mapping[str, np.ndarray]) -> None:
    """Raises UserError unless the feeds are named as the graph's inputs are."""
    if set(feeds) != set(inputs):
        raise UserError(
            f"The graph of {name!r} takes {', '.join(inputs)} but was given {', '.join(feeds)}: "
            "the artifact does not fit this pipeline; rebuild it."
        )


def refuse_nonfinite(name: str, outputs: Mapping[str, np.ndarray], call: int) -> None:
    """Raises NotFinite where an output holds NaN or infinity."""
    for output, value in outputs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NotFinite(name, output, f"call {call}")
