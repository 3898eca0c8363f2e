"""A trend is found when there is one and not when there is none, whatever the scatter and the outliers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.validation.drift import drift, sentence

SEEDS = st.integers(0, 2**32 - 1)


def scattered(seed: int, count: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).normal(100.0, 3.0, count)


@pytest.mark.parametrize("grown", [0.1, 0.4, -0.2])
def test_the_change_over_the_run_is_measured(grown: float) -> None:
    values = scattered(0) * np.linspace(1, 1 + grown, 60)
    found = drift(values)
    assert found is not None and found.noted
    assert found.change == pytest.approx(grown / (1 + grown / 2), abs=0.03)


def test_a_few_slow_runs_are_no_trend_and_do_not_hide_one() -> None:
    steady, throttled = scattered(1), scattered(1) * np.linspace(1, 1.2, 60)
    for values in (steady, throttled):
        values[[50, 55, 59]] *= 5
    assert sentence(drift(steady)) is None
    found = drift(throttled)
    assert found is not None and found.change == pytest.approx(0.18, abs=0.05)


def test_scatter_alone_is_hardly_ever_noted() -> None:
    noted = [sentence(drift(scattered(seed))) is not None for seed in range(300)]
    assert np.mean(noted) <= 0.01


def test_a_certain_but_small_trend_is_not_worth_a_note() -> None:
    found = drift(np.linspace(100, 102, 500))
    assert found is not None and found.chance < 1e-6 and not found.noted


@pytest.mark.parametrize("values", [[100.0] * 9, [], [100.0] * 500, [1.0, 2.0] * 100])
def test_nothing_is_said_of_few_or_equal_or_alternating_values(values: list[float]) -> None:
    assert sentence(drift(values)) is None


@given(SEEDS, st.floats(-0.5, 0.5))
def test_reversing_the_run_reverses_the_trend(seed: int, grown: float) -> None:
    values = scattered(seed, 30) * np.linspace(1, 1 + grown, 30)
    ahead, back = drift(values), drift(values[::-1])
    assert ahead is not None and back is not None
    assert back.change == pytest.approx(-ahead.change) and back.chance == pytest.approx(ahead.chance)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_the_unit_does_not_matter(seed: int, factor: float) -> None:
    values = scattered(seed, 30)
    plain, scaled = drift(values), drift(values * factor)
    assert plain is not None and scaled is not None
    assert scaled.change == pytest.approx(plain.change, abs=1e-9) and scaled.chance == pytest.approx(plain.chance)


def test_a_long_run_is_read_in_blocks() -> None:
    values = scattered(3, 20_000) * np.linspace(1, 1.1, 20_000)
    found = drift(values)
    assert found is not None and found.change == pytest.approx(0.095, abs=0.01)


def test_the_sentence_says_which_way_and_how_far() -> None:
    assert (sentence(drift(np.linspace(100, 120, 50))) or "").startswith(
        "Latency grew by 18 % over the run: the device"
    )
    assert (sentence(drift(np.linspace(120, 100, 50))) or "").startswith("Latency fell by 18 % over the run")
