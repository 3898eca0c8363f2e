"""The sweep over targets and presets, and its place in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import engines.report
from artifact.manifest import Artifact
from engines.cost.where import sweep
from engines.report import where
from engines.targets import TARGETS

SCHEMA = json.loads(Path(engines.report.__file__).with_name("schema.json").read_text())


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def rows(tiny_flux: Artifact, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("none")))
        return sweep(tiny_flux, {"fp16": 1500.0, "int4-rtn": 2500.0}, 1)


def test_there_is_a_row_for_every_target_and_preset(rows: list[dict[str, Any]]) -> None:
    assert [(r["target"], r["preset"]) for r in rows] == [(t.name, p) for t in TARGETS for p in ("fp16", "int4-rtn")]
    jsonschema.validate(rows, {**SCHEMA["properties"]["where"], "$defs": SCHEMA["$defs"]})


def test_the_cpu_shows_what_was_measured_and_why_nothing_was_predicted(rows: list[dict[str, Any]]) -> None:
    cpu = rows[:2]
    assert [r["measured_s"] for r in cpu] == [1.5, 2.5] and all(r["image_s"] is None for r in cpu)
    assert "--target cpu" in cpu[0]["why"] and all(r["measured_s"] is None for r in rows[2:])


def test_the_others_are_predicted(rows: list[dict[str, Any]]) -> None:
    for row in rows[2:]:
        assert row["why"] is None and row["fits"] == "resident"
        assert 0 < row["image_s"]["low"] < row["image_s"]["expected"] < row["image_s"]["high"]
        assert 0 < row["pipelined_bytes"] < row["resident_bytes"] <= row["usable_bytes"]
    assert {r["target"] for r in rows if r["unverified"]} == {t.name for t in TARGETS if t.unverified}


def test_an_artifact_without_the_form_says_so(tiny_flux: Artifact) -> None:
    parts = {n: {k: v for k, v in c.items() if k != "tensorrt"} for n, c in tiny_flux.manifest["components"].items()}
    bare = Artifact(tiny_flux.root, tiny_flux.manifest | {"components": parts})
    found = sweep(bare, {"fp16": 1000.0})
    assert all(r["image_s"] is None and "TensorRT parses" in r["why"] for r in found[1:])


def test_the_table_has_a_row_per_target_with_its_figures(rows: list[dict[str, Any]]) -> None:
    table = where.rows({"where": rows})
    assert len(table) == len(TARGETS) and all(len(cells) == 2 for _, cells in table)
    assert table[0][1][0].note == "measured 1.5 s"
    title, cells = table[1]
    assert title == "Jetson Orin Nano 8 GB Super*" and cells[0].text.endswith(" s") and "fits" in cells[0].note
    assert where.reasons({"where": rows}) == [rows[0]["why"]]
    assert where.rows({}) == [] and where.reasons({}) == []


def test_the_figure_is_drawn_where_there_is_something_to_draw(rows: list[dict[str, Any]]) -> None:
    colours = {"fp16": "#8a929e", "int4-rtn": "#2b5fc4"}
    svg = where.plot({"where": rows}, colours)
    assert svg is not None and b"<svg" in svg
    large = [r | {"fits": "no"} for r in rows]
    assert where.plot({"where": large}, colours) != svg
    assert where.plot({"where": rows[:2]}, colours) is None and where.plot({}, colours) is None


def test_seconds_have_two_digits() -> None:
    assert [where.seconds_text(s) for s in (0.02134, 3.44, 9.96, 128.4)] == ["0.021", "3.4", "10", "128"]
