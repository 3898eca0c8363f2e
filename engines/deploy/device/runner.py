"""What a component is run with: engine.py's Engine on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


class Runner(Protocol):
    """One component: arrays in by name, arrays out by name, every call timed."""

    latencies_ms: list[float]

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays: ...


Opener = Callable[[str], AbstractContextManager[Runner]]  # of a component's name; it is in memory while entered
