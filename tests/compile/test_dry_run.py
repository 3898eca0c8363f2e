"""What a dry run says that a build would keep, do and need is what the build keeps, does and needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artifact.errors import UserError
from export.dry_run import Plan, dry_run, sentences
from export.estimate import BUILD_BYTES, EXPORT_BYTES, HELD, exporting_bytes, solving_bytes
from export.options import Options
from export.plan import planned
from export.stages import Stages
from passes.layers import Layer
from passes.policy import FOUR_BIT
from passes.solver import Recipe
from passes.solver.memory import estimated_bytes

# As tests/compile/commands.py builds it.
SMALL = {"references": 2, "calibration": 2, "steps": 2, "rows": 64, "compare": ("int4-rtn",)}


@pytest.fixture
def options(built: Path, cache: Path, tmp_path: Path) -> Options:
    """Those of `built`, into another directory."""
    return Options(out=tmp_path / "out", cache=cache, **SMALL)


def said(options: Options, found: Plan) -> str:
    return " ".join(sentences(planned(options, Stages(quiet=True))[0], found))


def runs(found: Plan) -> set[str]:
    """The stages that would run, of those that memory is reckoned for."""
    return {stage for stage, peak in found.memory.items() if peak}


def test_all_that_a_build_has_made_is_kept(options: Options) -> None:
    found = dry_run(options)
    rows = {(r.component, r.form): r for r in found.rows}
    assert all(r.graph_kept for r in found.rows)
    for form in ("svdq-int4", "int4-rtn"):
        assert rows["transformer", form].solved == rows["transformer", form].layers > 20
    assert found.samples is not None and found.samples[0] == found.samples[1] > 10 and found.images == (2, 2)
    assert runs(found) == {"rewrite", "check"} and found.skipped == []
    text = said(options, found)
    assert "samples are kept" in text and "2 reference images 2 are kept" in text


def test_what_other_flags_would_make_anew_is_told(options: Options) -> None:
    steps = dry_run(replace(options, steps=3))
    assert steps.samples is not None and steps.samples[0] == 0 and steps.images == (0, 2)
    assert {r.solved for r in steps.rows if r.layers} == {0}
    assert runs(steps) == {"solve", "calibrate and draw", "rewrite", "check"}
    assert "Calibration runs the 16-bit pipeline" in said(options, steps) and "Memory: about" in said(options, steps)
    ranks = dry_run(replace(options, rank=16))
    assert ranks.samples is not None and ranks.samples[0] == ranks.samples[1]
    weights_alone = sum(r.solved for r in ranks.rows if r.form == "svdq-int4")  # have no branch, whatever its rank
    assert 0 < weights_alone < next(r.layers for r in ranks.rows if r.form == "svdq-int4")
    assert runs(ranks) == {"solve", "rewrite", "check"} and ranks.seconds > dry_run(options).seconds


def test_what_another_device_has_drawn_is_not_taken_for_this_one_s(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.pipeline._arithmetic", lambda source: ("cuda", torch.float16))
    found = dry_run(replace(options, max_memory="8GB"))
    assert found.samples is not None and found.samples[0] == 0 and found.images == (0, 2)


def test_what_there_is_no_memory_for_is_skipped_and_said(options: Options) -> None:
    found = dry_run(replace(options, max_memory="20MB"))
    assert any("transformer would not be compared" in s and "--max-memory is 0.0 GB" in s for s in found.skipped)
    assert not any("vae_decoder" in s for s in found.skipped)
    assert "Skipped: The graph of transformer" in said(options, found)


def test_prompts_that_the_build_would_refuse_are_refused(options: Options, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(UserError, match="none.txt holds no prompt"):
        dry_run(replace(options, reference_prompts=tmp_path / "none.txt"))


def test_memory_is_that_of_the_workers_that_fit_the_limit(options: Options) -> None:
    def of(function, *arguments, **changes) -> int:
        return function(planned(replace(options, **changes), Stages(quiet=True))[0], *arguments)

    assert of(exporting_bytes, 5, jobs=3) == BUILD_BYTES + 3 * EXPORT_BYTES
    assert of(exporting_bytes, 5, jobs=3, max_memory="1.2GB") == BUILD_BYTES + 2 * EXPORT_BYTES
    assert of(exporting_bytes, 5, jobs=3, max_memory="2MB") == BUILD_BYTES + EXPORT_BYTES
    assert of(exporting_bytes, 0, jobs=3) == BUILD_BYTES

    def layer(n: int) -> tuple[Layer, Recipe, int]:
        return Layer("x", ("x",), (), None, "x", "x", 3072, n, FOUR_BIT, False), Recipe(), 0

    large, small = (estimated_bytes(n, 3072, 0, 32) for n in (12288, 3072))
    layers = [layer(3072), layer(12288), layer(12288)]
    assert of(solving_bytes, layers, jobs=2) == HELD + 2 * large
    assert of(solving_bytes, layers, jobs=2, max_memory=f"{large + small}B") == HELD + large + small
    assert of(solving_bytes, layers, jobs=2, max_memory="2MB") == HELD + large
    assert HELD < of(solving_bytes, layers, jobs=1) < HELD + large
    assert of(solving_bytes, [], jobs=2) == 0


def test_exports_that_do_not_fit_the_limit_together_are_made_one_after_the_other(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import compile

    given = []

    def each(function, tasks, workers, preload, memory, limit):
        given.append((len(tasks), workers, [memory(t) for t in tasks], limit))
        raise InterruptedError

    monkeypatch.setattr(compile, "each", each)
    fresh = replace(options, cache=tmp_path / "cache", max_memory="600MB", jobs=4)
    with pytest.raises(InterruptedError):
        compile.compile_model(fresh, Stages(quiet=True))
    assert given == [(5, 4, [EXPORT_BYTES] * 5, 600_000_000)]
