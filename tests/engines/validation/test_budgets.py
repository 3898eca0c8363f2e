"""A budget holds or breaks exactly at its limit, says so in a line that is true, and refuses what means nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import UserError
from engines.validation.budgets import BUDGETS, apart, judge, limits, refuse_uncheckable

FINITE = st.floats(1e-3, 1e9, allow_nan=False)


def result(value: float) -> dict[str, Any]:
    """A result in which every figure is `value` in its budget's unit."""
    return {
        "latency": {"image": {"p50_ms": value}, "step": {"p50_ms": value}},
        "memory": {"peak_bytes": value * 1e6},
        "disk": {"total_bytes": value * 1e6},
        "fidelity": {"psnr_db": {"mean": value}, "ssim": {"mean": value}, "latent_cosine": [value + 1, value]},
        "prompt_score": {"right": value, "of": 4},
    }


def test_every_option_of_the_issue_is_there() -> None:
    assert {b.option for b in BUDGETS} == {
        "--max-latency-ms", "--max-step-ms", "--max-vram-mb", "--max-disk-mb", "--min-psnr", "--min-ssim",
        "--min-latent-cosine", "--min-prompt-score",
    }  # fmt: skip


@given(FINITE, FINITE)
def test_a_ceiling_holds_up_to_its_limit_and_a_floor_down_to_it(value: float, limit: float) -> None:
    rows = {r["option"]: r for r in judge(result(value), {b.key: limit for b in BUDGETS})}
    assert len(rows) == len(BUDGETS)
    for budget in BUDGETS:
        row = rows[budget.option]
        seen = row["value"]  # bytes come back from 10^6 bytes, one rounding away
        assert seen == pytest.approx(value)
        assert row["held"] == (seen <= limit if budget.most else seen >= limit)


@given(FINITE, FINITE)
def test_the_line_is_true_as_it_is_printed(value: float, limit: float) -> None:
    row = judge(result(value), {"max_latency_ms": limit})[0]
    shown = float(row["line"].split()[2])
    assert (shown <= limit) == row["held"]
    assert shown == pytest.approx(value, rel=0.01, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(812.3, 700, "812"), (700.4, 700, "700.4"), (699.6, 700, "699.6"), (28.31, 30, "28.3"),
     (0.99649, 0.9965, "0.99649"), (700.0, 700, "700"), (10.75, 10.75, "10.75"), (5.0001, 5, "5.0001"),
     (float("nan"), 3, "nan")],
)  # fmt: skip
def test_a_figure_has_as_many_digits_as_tell_it_from_the_limit(value: float, limit: float, text: str) -> None:
    assert apart(value, limit) == text


def test_the_broken_lines_name_figure_limit_and_option() -> None:
    rows = judge(result(812.0), {"max_latency_ms": 700, "min_psnr": 900, "max_disk_mb": 900})
    assert [r["line"] for r in rows] == [
        "latency p50 812 ms is above --max-latency-ms 700",
        "disk 812 MB holds --max-disk-mb 900",
        "mean PSNR 812 dB is below --min-psnr 900",
    ]
    assert [r["held"] for r in rows] == [False, True, False]


def test_a_figure_that_is_not_a_number_breaks_its_budget() -> None:
    assert not any(r["held"] for r in judge(result(math.nan), {b.key: 1.0 for b in BUDGETS}))


def test_no_budget_is_no_row() -> None:
    assert limits({b.key: None for b in BUDGETS}) == {} and judge(result(1.0), {}) == []


def test_megabytes_are_decimal() -> None:
    row = judge({**result(0), "disk": {"total_bytes": 2**20}}, {"max_disk_mb": 1.0})[0]
    assert not row["held"] and row["line"] == "disk 1.05 MB is above --max-disk-mb 1"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("max_latency_ms", math.nan, "--max-latency-ms is nan: give a number above 0"),
        ("max_latency_ms", -1.0, "--max-latency-ms is -1: give a number above 0"),
        ("max_disk_mb", 0.0, "--max-disk-mb is 0: give a number above 0"),
        ("max_vram_mb", math.inf, "--max-vram-mb is inf"),
        ("min_psnr", -3.0, "--min-psnr is -3: give a number from 0 to 100"),
        ("min_psnr", 101.0, "--min-psnr is 101"),
        ("min_ssim", 1.5, "--min-ssim is 1.5: give a number from 0 to 1"),
        ("min_latent_cosine", math.nan, "--min-latent-cosine is nan"),
        ("min_prompt_score", 95.0, "--min-prompt-score is 95: give a number from 0 to 1"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(key: str, value: float, words: str) -> None:
    with pytest.raises(UserError, match="^" + words):
        limits({key: value})


def test_limits_at_the_ends_of_their_range_are_taken() -> None:
    ends = {"min_psnr": 100.0, "min_ssim": 1.0, "min_latent_cosine": 0.0, "max_step_ms": 1e-9}
    assert limits(ends) == ends


def test_a_budget_without_a_figure_is_refused() -> None:
    with pytest.raises(UserError, match="--min-prompt-score cannot be judged"):
        judge({**result(1.0), "prompt_score": None}, {"min_prompt_score": 0.5})
    with pytest.raises(UserError, match="'a red fox': only captions of the bundled models"):
        refuse_uncheckable(["a large red circle at the top on white", "a red fox"])
    refuse_uncheckable(["a large red circle at the top on white"])
