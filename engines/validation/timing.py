"""How long something takes: percentiles, the confidence interval of the median, and when to stop repeating.

Why medians and order statistics, not means and standard deviations, and why to repeat until the interval is narrow:
Hoefler and Belli, "Scientific Benchmarking of Parallel Computing Systems", SC 2015.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

CONFIDENCE = 0.95
NARROW = 0.05  # an interval whose whole width is under this share of its median is narrow enough to stop
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Interval:
    """A median and between what it lies with 95 % confidence, in the values' unit."""

    median: float
    low: float
    high: float

    @property
    def relative(self) -> float:
        """The whole width as a share of the median; infinite where the median is 0 and the width is not."""
        width = self.high - self.low
        return width / self.median if self.median else (float("inf") if width else 0.0)


def median_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """The distribution-free confidence interval of the median: two order statistics of the values, in any order.

    None for fewer than 6 values, whose whole range encloses the median with less than 95 %. The values are taken to be
    independent. Hahn and Meeker, "Statistical Intervals", chapter 5.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    rank = _rank(len(ordered))
    if not rank:
        return None
    return Interval(float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[len(ordered) - rank]))


@lru_cache
def _rank(count: int) -> int:
    """The largest r such that the r-th smallest and r-th largest of `count` values enclose the median with 95 %; or 0.

    They miss it when fewer than r values lie on one side: twice the tail of a binomial distribution with p = 1/2.
    """
    k = np.arange(count // 2)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((count - k) / (k + 1.0)))])
    tail = np.cumsum(np.exp(log_choose - count * np.log(2)))
    return int(np.sum(2 * tail <= 1 - CONFIDENCE))


def narrow(values: Sequence[float] | np.ndarray) -> bool:
    """Whether the median of these values is known well enough."""
    interval = median_interval(values)
    return interval is not None and interval.relative < NARROW


def summary(calls: Sequence[Sequence[float]] | np.ndarray) -> dict[str, Any]:
    """The figures of one row: `calls` milliseconds [images, calls of one image], every image with equally many.

    `p50_ms`, `p90_ms`, `p99_ms` are over all calls. `interval` is that of the median over images of an image's mean
    call, because the calls of one image are not independent; None for fewer than 6 images.
    """
    table = np.asarray(calls, np.float64)
    interval = median_interval(table.mean(axis=1))
    return {
        "calls": table.shape[1],
        **{f"p{p}_ms": float(np.percentile(table, p)) for p in PERCENTILES},
        "interval": interval
        and {
            "median_ms": interval.median,
            "low_ms": interval.low,
            "high_ms": interval.high,
            "relative": interval.relative,
        },
    }


def repeat(
    once: Callable[[], object],
    fewest: int,
    seconds: float,
    enough: Callable[[list[float]], bool] = narrow,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Milliseconds of each call of `once`, called until `enough` of them are in, but at least `fewest` times.

    Ends early, after at least one call, when a call ends after `seconds`. `enough` sees all milliseconds so far; it is
    asked after every tenth more of them, as asking for the interval itself takes time. `clock` gives seconds.
    """
    start, taken, asked_at = clock(), list[float](), fewest
    while True:
        begin = clock()
        once()
        end = clock()
        taken.append((end - begin) * 1e3)
        if end - start >= seconds:
            return taken
        if len(taken) >= asked_at:
            if enough(taken):
                return taken
            asked_at = len(taken) + max(1, len(taken) // 10)
