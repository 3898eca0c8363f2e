"""Loading one layer's arrays in the process that solves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from artifact.errors import UserError
from artifact.store import Store
from passes.layers import Layer


class Stored(Protocol):
    """A tensor somewhere in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def file(self) -> Path: ...

    def read(self) -> np.ndarray: ...


def _array(stored: Stored) -> np.ndarray:
    """The tensor; 16-bit types as they are, and mapped if they were, every other type as float32."""
    array = stored.read()
    kept = array.dtype == np.float16 or array.dtype.name == "bfloat16"
    return np.require(array, None if kept else np.float32, "A")


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """The parts one below the other; a single one is not copied, for it may fill the memory."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class LayerLoader:
    """Reads (weight [N, K], bias [N] or None, samples [S, K] or None) of one layer; small enough to be pickled."""

    layer: Layer
    refs: Mapping[str, Stored]
    store: str
    samples_key: str | None

    def __call__(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        layer = self.layer
        parts = [_array(self.refs[name]) for name in layer.weights]
        weight = _stacked([part.reshape(len(part), -1) for part in parts])  # a 1 x 1 convolution has two more axes
        bias = self._bias()
        samples = None
        if self.samples_key is not None:
            found = Store(self.store).get_arrays(self.samples_key)
            if found is None:
                raise UserError(
                    f"The calibration samples of {layer.input} are gone from {self.store}, or damaged: run the same "
                    "command again, they are drawn anew."
                )
            samples = found[0]["samples"]
        if layer.columns is not None:
            start, stop = layer.columns
            weight = np.ascontiguousarray(weight[:, start:stop])
            samples = None if samples is None else np.ascontiguousarray(samples[:, start:stop])
        return weight, bias, samples

    def _bias(self) -> np.ndarray | None:
        if not self.layer.biases:
            return None
        rows = [self.refs[w].shape[0] for w in self.layer.weights]
        parts = [
            _array(self.refs[b]) if b is not None else np.zeros(n, np.float32)
            for b, n in zip(self.layer.biases, rows, strict=True)
        ]
        return _stacked(parts)
