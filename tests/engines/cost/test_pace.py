"""Times that are told in units of the machine's pace compare, however fast it was when they were taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engines.cost.pace import LOOKS, RECENT, TRIES, Pace


def paced(speeds: list[float]) -> tuple[Pace, Callable[[], float]]:
    """A machine on which every piece of work, the fixed one (1 s) or the measured one (5 s), takes the next speed's
    share of its time: the last speed stays. And the measured work."""
    pace, left = Pace(1), iter(speeds)
    last = [1.0]

    def speed() -> float:
        last[0] = next(left, last[0])
        return last[0]

    now = [0.0]

    class Fixed:
        def run(self, *_: object) -> None:
            now[0] += speed()

    pace._session, pace._clock = Fixed(), lambda: now[0]
    return pace, lambda: 5 * speed()


def steady(speed: float) -> list[float]:
    return [speed] * (2 * LOOKS + 1)


def test_a_slow_and_a_fast_machine_tell_the_same() -> None:
    pace, work = paced(steady(1.0) + steady(1.7))
    assert [pace.relative(work) for _ in range(2)] == pytest.approx([5.0] * 2)
    assert pace.usual == pytest.approx(1.7) and len(pace.looks) == 6  # taken again until it was the frequent one


def test_a_measurement_during_which_the_pace_changed_is_taken_again() -> None:
    changed = [1.0] * LOOKS + [1.0] + [1.6] * LOOKS
    pace, work = paced(changed + steady(1.6))
    assert pace.relative(work) == pytest.approx(5.0)
    assert len(pace.looks) == 4


def test_a_measurement_at_another_pace_is_taken_again() -> None:
    """Products and memory do not slow down alike: this one is slowed down more than the fixed work."""
    looks = 2 * LOOKS
    pace, _ = paced(3 * looks * [1.0] + looks * [1.7] + looks * [1.0])
    times = iter([5.0, 5.0, 5.0, 20.0, 5.0])
    assert [float(pace.relative(lambda: next(times))) for _ in range(4)] == pytest.approx([5.0] * 4)


def test_of_two_paces_one_is_frequent_and_the_median_is_neither() -> None:
    pace, _ = paced([])
    pace.looks = [1.0, 1.01, 1.02, 1.03, 1.3, 1.6, 1.62, 1.7]
    assert pace.usual == pytest.approx(1.165)
    assert pace.frequent == pytest.approx(1.015, rel=0.01)
    pace.looks = [2.0] * RECENT + [1.0] * RECENT
    assert pace.frequent == 1.0  # what it was before does not matter


def test_where_it_always_changes_the_steadiest_of_some_counts() -> None:
    speeds: Iterator[float] = iter(1.3**n for n in range(TRIES + 2))
    changes = [v for _ in range(TRIES) for v in [*[next(speeds)] * LOOKS, 7.0, *[7.5] * LOOKS]]
    pace, work = paced(changes)
    found = pace.relative(work)
    assert len(pace.looks) == 2 * TRIES
    least = 1.3 ** (TRIES - 1)  # the last one is the nearest to what follows it
    assert found == pytest.approx(5 * 7.0 / np.sqrt(7.5 * least))


def test_several_times_are_told_at_once() -> None:
    pace, _ = paced(steady(2.0))
    assert pace.relative(lambda: (4.0, 1.0)).tolist() == pytest.approx([2.0, 0.5])


@pytest.mark.parametrize("threads", [1, None])
def test_the_fixed_work_is_real_and_small(threads: int | None) -> None:
    pace = Pace(threads)
    assert 0 < pace.look() < 1 and pace.usual == pace.looks[0]
