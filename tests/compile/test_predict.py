"""Builds of both bundled models are predicted by the command for a device that is not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compile.commands import ROOT

MODELS = ("built", "built_unet")


def predicted(out: Path, *arguments: object) -> str:
    """What the command prints, in a process of its own."""
    command = [sys.executable, "-m", "engines.predict", str(out), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("model", MODELS)
def test_a_bundled_model_is_predicted_for_a_device_with_band_and_assumptions(
    model: str, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(model)
    by_preset: dict[str, Any] = {
        p: json.loads(predicted(root, "--target", "orin-nano", "--preset", p, "--json")) for p in ("fp16", "svdq-int4")
    }
    report = json.loads((root / "report.json").read_text(encoding="utf-8"))
    for preset, found in by_preset.items():
        measured = next(p for p in report["presets"] if p["name"] == preset)["latency"]["components"]
        assert {c["name"]: c["calls"] for c in found["components"]} == {n: r["calls"] for n, r in measured.items()}
        assert 0 < found["image_ms"]["low"] < found["image_ms"]["expected"] < found["image_ms"]["high"]
        assert not any(c["uncounted"] for c in found["components"])
        assert found["fits"] == "resident" and found["measured"] is None
    weights = {p: sum(c["weight_bytes"] for c in f["components"]) for p, f in by_preset.items()}
    assert weights["svdq-int4"] < weights["fp16"]
    said = predicted(root, "--target", "orin-nano")
    for words in ("ms a call", "unverified", "- Memory gives 80%", "- Memory: weights", "fits, all components at once"):
        assert words in said
    assert said.count(" to ") > len(by_preset["fp16"]["components"])  # bands
