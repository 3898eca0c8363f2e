"""What would run where: every preset of an artifact on every target, predicted, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.cost.ceilings import Ceilings
from engines.cost.prediction import Band, Forms, predict
from engines.targets import TARGETS, Target


def sweep(artifact: Artifact, measured_ms: dict[str, float | None], threads: int | None = None) -> list[dict[str, Any]]:
    """A row per target and preset of `measured_ms` ({preset: milliseconds of an image on this machine's CPU, or None}).

    Rows: `target`, `title`, `preset`, `fits` ("resident" | "pipelined" | "no"), `image_s` {low, expected, high},
    `resident_bytes`, `pipelined_bytes`, `usable_bytes`, `unverified` (figures of the target with one source),
    `measured_s` (cpu only), `why` there is no prediction. What is not known is None. This machine's CPU is predicted
    where its micro-benchmarks were already kept by `python -m engines.predict OUT --target cpu`: nothing is measured
    here.
    """
    forms, ceilings = Forms(), Ceilings.cached(threads)
    return [
        _row(artifact, target, preset, milliseconds, ceilings, forms)
        for target in TARGETS
        for preset, milliseconds in measured_ms.items()
    ]


def _row(
    artifact: Artifact, target: Target, preset: str, measured_ms: float | None, ceilings: Ceilings, forms: Forms
) -> dict[str, Any]:
    is_cpu = target.compute_capability is None
    measured_s = measured_ms / 1e3 if is_cpu and measured_ms is not None else None
    row: dict[str, Any] = {
        "target": target.name, "title": target.title, "preset": preset, "fits": None, "image_s": None,
        "resident_bytes": None, "pipelined_bytes": None, "usable_bytes": None,
        "unverified": sorted(target.unverified), "measured_s": measured_s, "why": None,
    }  # fmt: skip
    if is_cpu and not ceilings.seconds:
        return row | {"why": "this machine's ceilings were not measured (python -m engines.predict OUT --target cpu)"}
    try:
        found = predict(artifact, target, preset, ceilings=ceilings if is_cpu else None, forms=forms)
    except UserError as e:
        # The report says nothing of the machine's directories.
        return row | {"why": str(e).replace(str(artifact.root), artifact.manifest["name"])}
    if found.image_ms is None:
        row["why"] = "this machine's ceilings lack nodes of this preset (python -m engines.predict OUT --target cpu)"
    return row | {
        "fits": found.fits, "image_s": found.image_ms and _seconds(found.image_ms),
        "resident_bytes": found.resident_bytes, "pipelined_bytes": found.pipelined_bytes,
        "usable_bytes": found.usable_bytes,
    }  # fmt: skip


def _seconds(band: Band) -> dict[str, float]:
    return {"low": band.low / 1e3, "expected": band.expected / 1e3, "high": band.high / 1e3}


def presets_of(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """What `sweep` wants of a report's preset entries: the median milliseconds of an image."""
    return {p["name"]: p["latency"] and p["latency"]["image"]["median_ms"] for p in rows}
