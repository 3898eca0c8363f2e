"""trtexec's own timings, the files that `trtexec --exportTimes=FILE` wrote, as the validator's figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from artifact.errors import UserError, nearest
from artifact.manifest import Artifact
from engines.trt import plan
from engines.trt.trtexec import read_times
from engines.validation import drift, timing


def files_by_component(given: Iterable[str], components: Sequence[str]) -> dict[str, Path]:
    """`component=FILE` of each `--times`. Raises UserError for another form or an unknown component."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise UserError(f"--times {text!r} names no component: write it as {components[0]}=times.json.")
        if name not in components:
            raise UserError(f"--times {text!r}: the artifact has no component {name!r}, {nearest(name, [*components])}")
        if name in found:
            raise UserError(f"--times names {name!r} twice ({found[name]} and {file}): give one file for each.")
        found[name] = Path(file)
    return found


def beside_engines(artifact: Artifact, preset: str) -> dict[str, Path]:
    """The times that `python -m engines.benchmark` left of this preset's engines, by component.

    Raises UserError for an engine that may not be loaded here.
    """
    plans = {name: plan.find(artifact, name, preset) for name in artifact.manifest["components"]}
    return {name: p.times for name, p in plans.items() if p.is_timed}


def read(path: Path) -> dict[str, Any]:
    """Percentiles and interval of `latencyMs` (as `timing.summary` has them, one call at a time), and more.

    `compute_p50_ms`: on the GPU alone, without the copies. `note`: the drift of the device, or None. Raises UserError
    for a file that is not trtexec's.
    """
    times = read_times(path)
    latency, compute = times["latency_ms"], times["compute_ms"]
    found = timing.summary([[t] for t in latency])
    return {
        "file": path.name,
        "inferences": len(latency),
        "compute_p50_ms": timing.summary([[t] for t in compute])["p50_ms"],
        **{k: v for k, v in found.items() if k != "calls"},
        "note": drift.sentence(drift.drift(latency)),
    }
