"""Times that are told in units of the machine's pace compare, however fast it was when they were taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engines.cost.pace import LOOKS, TRIES, Pace


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
    pace, work = paced(steady(1.0) + steady(1.7) + steady(0.6))
    assert [pace.relative(work) for _ in range(3)] == pytest.approx([5.0] * 3)
    assert pace.usual == pytest.approx(1.0)  # the median of 1, 1, 1.7, 1.7, 0.6 and 0.6


def test_a_measurement_during_which_the_pace_changed_is_taken_again() -> None:
    changed = [1.0] * LOOKS + [1.0] + [1.6] * LOOKS
    pace, work = paced(changed + steady(1.6))
    assert pace.relative(work) == pytest.approx(5.0)
    assert len(pace.looks) == 4


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
