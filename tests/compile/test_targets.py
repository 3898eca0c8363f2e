"""What a build says of targets that it makes no engine for."""

from __future__ import annotations

from engines import targets
from export.compile import _skipped


def test_a_gpu_target_is_told_that_no_engine_was_built_and_the_cpu_is_told_nothing() -> None:
    (sentence,) = _skipped(targets.find("agx-orin"))
    assert "No TensorRT engine" in sentence and targets.find("agx-orin").title in sentence
    assert _skipped(targets.find("cpu")) == []
