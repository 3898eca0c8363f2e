"""A run is compared with the last one like it, and only what is certain and large enough is called a change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.validation.regression import SAME, WATCHED, at, compare, last_comparable
from tests.engines.validation.results import made_up


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The made-up run with one figure changed."""
    result = made_up()
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return result


def slower(ratio: float, low: float, high: float) -> dict[str, Any]:
    """The made-up run whose images take `ratio` times as long, with that interval."""
    result = made_up()
    image = result["latency"]["image"]
    image["p50_ms"] *= ratio
    image["interval"] = {"median_ms": image["p50_ms"], "low_ms": low, "high_ms": high, "relative": 0.04}
    return result


def row(result: dict[str, Any], name: str, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    return next(r for r in compare(earlier or made_up(), result) if r["name"] == name)


def test_a_slower_run_is_worse_and_says_by_how_much() -> None:
    found = row(slower(1.2, 118, 122), "image")
    assert found["verdict"] == "worse" and found["ratio"] == pytest.approx(1.2)
    assert found["line"] == "image is worse (100.1 → 120.1, × 1.200) against the run of 2026-11-21T12:00:00+00:00"


def test_a_faster_run_is_better() -> None:
    assert row(slower(0.8, 78, 82), "image")["verdict"] == "better"


@pytest.mark.parametrize(
    ("ratio", "low", "high"),
    [(1.2, 95, 150), (1.04, 103.9, 104.2)],
    ids=["the intervals overlap", "the change is under 5 %"],
)
def test_what_may_be_noise_is_no_change(ratio: float, low: float, high: float) -> None:
    assert row(slower(ratio, low, high), "image")["verdict"] == "same"


def test_without_an_interval_no_change_of_latency_is_claimed() -> None:
    result = slower(2.0, 190, 210)
    result["latency"]["image"]["interval"] = None
    assert row(result, "image")["verdict"] == "same"


@pytest.mark.parametrize(
    ("path", "value", "name", "verdict"),
    [
        (("memory", "peak_bytes"), 550_000_000, "peak memory", "worse"),
        (("memory", "peak_bytes"), 520_000_000, "peak memory", "same"),
        (("memory", "peak_bytes"), 400_000_000, "peak memory", "better"),
        (("disk", "total_bytes"), 7_100_000, "disk", "worse"),
        (("fidelity", "psnr_db", "mean"), 39.4, "mean PSNR", "worse"),
        (("fidelity", "psnr_db", "mean"), 39.6, "mean PSNR", "same"),
        (("fidelity", "psnr_db", "mean"), 41.0, "mean PSNR", "better"),
        (("fidelity", "ssim", "mean"), 0.97, "mean SSIM", "worse"),
        (("prompt_score", "right"), 0.0, "prompt score", "worse"),
        (("prompt_score", "right"), 1.0, "prompt score", "better"),
    ],
)
def test_every_figure_has_its_own_direction_and_threshold(
    path: tuple[str, ...], value: float, name: str, verdict: str
) -> None:
    assert row(changed(path, value), name)["verdict"] == verdict


def test_memory_by_another_probe_and_images_of_other_prompts_are_not_compared() -> None:
    names = {r["name"] for r in compare(made_up(), changed(("memory", "probe"), "nvml process memory"))}
    assert names == {w.title for w in WATCHED} - {"peak memory"}
    names = {r["name"] for r in compare(made_up(), changed(("settings", "prompts_sha256"), "c" * 64))}
    assert names == {"image", "step", "peak memory", "disk"}


@pytest.mark.parametrize("path", SAME, ids=".".join)
def test_only_a_run_of_the_same_kind_is_comparable(path: tuple[str, ...]) -> None:
    other = changed(path, "another")
    assert last_comparable([other], made_up()) is None
    older, newer = changed(("name",), "older"), changed(("name",), "newer")
    assert last_comparable([older, newer, other], made_up()) is newer


def test_versions_and_load_may_differ() -> None:
    other = changed(("versions",), {"python": "3.12"})
    other["machine"]["load_1min"] = 9.0
    assert last_comparable([other], made_up()) is other


@given(st.floats(0.5, 2.0), st.floats(0.0, 0.2))
def test_now_and_then_swapped_swaps_the_verdict(ratio: float, half: float) -> None:
    middle = 100.1 * ratio
    now = slower(ratio, middle * (1 - half), middle * (1 + half))
    ahead, back = row(now, "image"), row(made_up(), "image", now)
    swapped = {"worse": "better", "better": "worse", "same": "same"}
    # 5 % of the earlier value: the same difference may be above it one way and below it the other.
    if abs(abs(ratio - 1) - 0.05) > 0.01:
        assert back["verdict"] == swapped[ahead["verdict"]]
    assert ahead["ratio"] * back["ratio"] == pytest.approx(1)


@given(st.sampled_from([w.path for w in WATCHED] + [("latency",), ("latency", "image", "interval"), ("fidelity",)]),
       st.sampled_from([None, "text", [], {}, 0]))  # fmt: skip
def test_a_line_of_the_history_that_lacks_a_figure_stops_nothing(path: tuple[str, ...], value: Any) -> None:
    earlier = copy.deepcopy(changed(path, value))
    for found in compare(earlier, made_up()):
        assert found["verdict"] in ("worse", "better", "same")


def test_a_path_that_ends_early_is_none() -> None:
    assert at({"a": {"b": 3}}, ("a", "b")) == 3
    assert at({"a": {"b": 3}}, ("a", "b", "c")) is None and at([], ("a",)) is None
