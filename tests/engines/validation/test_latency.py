"""Steps, components and images are told apart in what was recorded, and the notes say when a figure is uncertain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.validation.latency import enough, latency, step_table
from engines.validation.notes import notes
from engines.validation.table import lines
from tests.engines.validation.results import made_up


def test_a_step_is_all_denoiser_calls_of_it() -> None:
    calls = np.arange(12.0).reshape(2, 6)  # two images, three steps of two calls
    assert step_table(calls, 3).tolist() == [[1.0, 5.0, 9.0], [13.0, 17.0, 21.0]]


def test_calls_that_do_not_divide_into_steps_are_spread_over_them() -> None:
    assert step_table(np.ones((2, 5)), 3).tolist() == [[pytest.approx(5 / 3)], [pytest.approx(5 / 3)]]


def test_rows_are_told_apart() -> None:
    found = latency([50.0] * 8, {"unet": [10.0, 14.0] * 16, "vae": [3.0] * 8, "unused": []}, "unet", 2)
    assert found["image"]["p50_ms"] == 50 and found["images"] == 8 and found["seconds"] == pytest.approx(0.4)
    assert found["step"]["p50_ms"] == 24 and found["step"]["calls"] == 2
    assert found["steps_per_second"] == pytest.approx(1000 / 24)
    assert {n: (r["calls"], r["p50_ms"]) for n, r in found["components"].items()} == {"unet": (4, 12), "vae": (1, 3)}
    assert found["narrow"] and found["note"] is None


def test_both_image_and_step_must_be_known() -> None:
    steady, scattered = [100.0] * 10, [50.0, 150.0] * 5
    assert enough(steady, [10.0] * 20, 2)
    assert not enough(scattered, [10.0] * 20, 2)
    assert not enough(steady, [5.0, 5.0, 15.0, 15.0] * 5, 2)
    assert not latency(steady, {"unet": [5.0, 5.0, 15.0, 15.0] * 5}, "unet", 2)["narrow"]


def with_latency(images: list[float], **more: Any) -> dict[str, Any]:
    result = made_up()
    count = len(images)
    result["latency"] = {
        "load_s": 0.5, **latency(images, {"transformer": [10.0] * 8 * count}, "transformer", 4), "trtexec": {},
    }  # fmt: skip
    return {**result, **more}


def test_a_quiet_and_certain_run_needs_no_note() -> None:
    assert notes(made_up()) == []
    assert "timed 10 images in 1.0 s until both intervals were under 5 %" in lines(made_up())


def test_too_few_or_too_scattered_runs_are_said_to_be() -> None:
    assert notes(with_latency([100.0] * 5)) == [
        "Timing ended after 5 images in 0 s, too few for a confidence interval (6 are needed): allow more than "
        "--max-seconds 120."
    ]
    assert notes(with_latency([1e5]))[0].startswith("Timing ended after 1 image in 100 s, too few")
    scattered = with_latency([80.0, 120.0] * 10)
    assert notes(scattered) == [
        "Timing ended after 20 images in 2 s with a confidence interval of the image's median 40 % wide, not under "
        "5 %: quieten the machine or allow more than --max-seconds 120."
    ]
    assert not any("until both intervals" in line for line in lines(scattered))


def test_a_device_that_throttles_is_noted() -> None:
    found = notes(with_latency([100.0 + 2 * i for i in range(40)]))
    assert any("Latency grew by 56 % over the run: the device may throttle" in note for note in found)


def test_a_busy_machine_is_noted() -> None:
    result = made_up()
    result["machine"]["load_1min"] = 1.2
    assert notes(result) == [
        "Other processes were running: the load was 1.2 on 2 cores when the measurement began, so times scatter."
    ]


@pytest.mark.parametrize(("limit", "close"), [(100.0, True), (100.2, True), (99.0, False), (101.0, False)])
def test_a_limit_within_the_interval_is_too_close_to_call(limit: float, close: bool) -> None:
    result = made_up()
    result["budgets"] = [{"option": "--max-latency-ms", "limit": limit, "held": True}]
    assert any("too close to call" in note for note in notes(result)) == close


def test_the_drift_of_trtexecs_run_is_noted_by_component() -> None:
    result = made_up()
    result["latency"]["trtexec"] = {"unet": {"note": "Latency grew."}, "vae": {"note": None}}
    assert notes(result) == ["unet (trtexec): Latency grew."]
