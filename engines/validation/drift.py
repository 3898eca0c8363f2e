"""A device that throttles: whether latencies grew or fell over a run, whatever else made them scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 10  # values below which no trend can be told from chance
POINTS = 200  # of the run that the trend is fitted to: longer runs are cut into as many blocks, each by its median
CHANCE = 0.01  # a trend that scatter alone would show more rarely is one
LEAST = 0.05  # change over the run, relative to its median, that a reader is told of


@dataclass(frozen=True)
class Drift:
    """`change`: from the run's first to its last value along the trend, relative to the median (0.08: 8 % slower).

    `chance`: two-sided p-value of the trend under mere scatter. `noted`: large enough and no chance.
    """

    change: float
    chance: float

    @property
    def noted(self) -> bool:
        return self.chance < CHANCE and abs(self.change) >= LEAST


def drift(values: Sequence[float] | np.ndarray) -> Drift | None:
    """The trend of positive values in the order in which they were measured; None for fewer than 10.

    Slope: the median over all pairs (Theil 1950, Sen 1968), which a few slow runs do not move. Significance: the test
    of Mann (1945) with Kendall's variance for ties, in the normal approximation with continuity correction.
    """
    series = np.asarray(values, np.float64)
    if len(series) < FEWEST:
        return None
    points = np.array([np.median(block) for block in np.array_split(series, min(POINTS, len(series)))])
    first, later = np.triu_indices(len(points), 1)
    rise = points[later] - points[first]
    slope = float(np.median(rise / (later - first)))
    middle = float(np.median(series))
    change = slope * (len(points) - 1) / middle if middle else 0.0
    return Drift(change, _chance(float(np.sign(rise).sum()), points))


def _chance(score: float, points: np.ndarray) -> float:
    """Two-sided p-value of Mann's score S of these points."""
    n = len(points)
    ties = np.unique(points, return_counts=True)[1].astype(np.float64)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0 or score == 0:  # all alike, or no trend at all
        return 1.0
    z = (abs(score) - 1) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def sentence(found: Drift | None) -> str | None:
    """What a reader is told; None where there is nothing to tell."""
    if found is None or not found.noted:
        return None
    percent = abs(found.change) * 100
    if found.change > 0:
        return (
            f"Latency grew by {percent:.0f} % over the run: the device may throttle (heat, power limit) or have become "
            "busy, so the median is that of a moment."
        )
    return (
        f"Latency fell by {percent:.0f} % over the run: the device was still warming up or became less busy, so the "
        "median is that of a moment."
    )
