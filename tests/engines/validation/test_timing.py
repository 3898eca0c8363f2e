"""Percentiles and the median's interval are what their definitions say; repeating stops when it may, by our clock."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.validation.timing import NARROW, median_interval, narrow, repeat, summary

MILLISECONDS = st.floats(1e-3, 1e6, allow_nan=False)


def enclosed(count: int, rank: int) -> Fraction:
    """Probability that the `rank`-th smallest and largest of `count` values enclose the median, exactly."""
    outside = sum(math.comb(count, k) for k in range(rank))
    return 1 - Fraction(2 * outside, 2**count)


@given(st.integers(6, 400))
def test_the_interval_takes_the_innermost_ranks_that_enclose_the_median_with_95_percent(count: int) -> None:
    found = median_interval(np.arange(1, count + 1))
    assert found is not None
    rank = int(found.low)
    assert found.high == count + 1 - rank
    assert enclosed(count, rank) >= Fraction(95, 100)
    assert enclosed(count, rank + 1) < Fraction(95, 100)


@pytest.mark.parametrize("count", range(6))
def test_fewer_than_six_values_have_no_interval(count: int) -> None:
    assert median_interval([1.0] * count) is None
    assert not narrow([1.0] * count)


@pytest.mark.parametrize(
    ("count", "ranks"),
    # As tables of statistics textbooks give them: 96.9, 99.2, 96.1, 97.9, 96.5, 95.1 and 95.9 %.
    [(6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (10, (2, 9)), (15, (4, 12)), (17, (5, 13)), (20, (6, 15))],
)
def test_the_ranks_are_those_of_published_tables(count: int, ranks: tuple[int, int]) -> None:
    found = median_interval(np.arange(1, count + 1))
    assert found is not None and (found.low, found.high) == ranks


@given(st.lists(MILLISECONDS, min_size=6, max_size=50), st.randoms())
def test_the_interval_holds_the_median_whatever_the_order_and_the_unit(values: list[float], random: object) -> None:
    found = median_interval(values)
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert found is not None and found.low <= found.median <= found.high
    assert median_interval(shuffled) == found
    doubled = median_interval([2 * v for v in values])
    assert doubled is not None and doubled.relative == pytest.approx(found.relative)


def test_it_covers_the_true_median_of_skewed_times_95_times_in_100() -> None:
    draws = np.random.default_rng(0).exponential(size=(4000, 25))
    found = [median_interval(d) for d in draws]
    covered = np.mean([i is not None and i.low <= math.log(2) <= i.high for i in found])
    assert covered > 0.94 and covered < 0.975  # ranks 8 and 18 of 25: 95.7 %


def test_percentiles_are_over_calls_and_the_interval_is_over_images() -> None:
    calls = np.array([[1.0, 3.0]] * 10)
    found = summary(calls)
    assert (found["calls"], found["p50_ms"], found["p90_ms"], found["p99_ms"]) == (2, 2.0, 3.0, 3.0)
    assert found["interval"] == {"median_ms": 2.0, "low_ms": 2.0, "high_ms": 2.0, "relative": 0.0}


def test_an_image_whose_calls_are_all_slow_counts_once() -> None:
    """24 calls of one slow image are no 24 independent witnesses."""
    calls = np.ones((9, 24))
    calls[0] = 2.0
    found = summary(calls)
    assert found["interval"]["high_ms"] == 1.0 and found["p99_ms"] == 2.0


def test_percentiles_interpolate_between_calls() -> None:
    found = summary(np.arange(101.0)[:, None])
    assert (found["p50_ms"], found["p90_ms"], found["p99_ms"]) == (50.0, 90.0, 99.0)


class Clock:
    """Seconds that pass only when a run takes them: each call of `once` the next of `durations`, the last for ever."""

    def __init__(self, *durations: float) -> None:
        self.now, self.durations, self.calls = 0.0, list(durations), 0

    def __call__(self) -> float:
        return self.now

    def once(self) -> None:
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def test_steady_runs_end_at_the_fewest() -> None:
    clock = Clock(0.25)
    assert repeat(clock.once, 10, 1000.0, clock=clock) == pytest.approx([250.0] * 10)


def test_scattered_runs_are_repeated_until_the_interval_is_narrow() -> None:
    durations = np.random.default_rng(1).normal(1.0, 0.08, 4000)
    clock = Clock(*durations)
    taken = repeat(clock.once, 10, 1e9, clock=clock)
    assert 10 < len(taken) < 200 and narrow(taken)
    found = median_interval(taken)
    assert found is not None and found.relative < NARROW


def test_runs_that_never_settle_end_when_the_time_is_over() -> None:
    durations = np.random.default_rng(2).choice([1.0, 2.0], 4000)
    clock = Clock(*durations)
    taken = repeat(clock.once, 10, 60.0, clock=clock)
    assert not narrow(taken) and sum(taken) >= 60e3 > sum(taken[:-1])


def test_one_run_longer_than_the_whole_time_is_still_measured() -> None:
    clock = Clock(300.0)
    assert repeat(clock.once, 10, 60.0, clock=clock) == pytest.approx([300e3])


def test_whether_it_is_enough_is_not_asked_after_every_run() -> None:
    clock, asked = Clock(0.01), list[int]()

    def never(taken: list[float]) -> bool:
        asked.append(len(taken))
        return False

    repeat(clock.once, 10, 10.0, never, clock)
    assert asked[:3] == [10, 11, 12] and clock.calls >= 999 and len(asked) < 60
