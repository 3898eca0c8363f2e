"""The engines as trtexec timed them (`python -m engines.benchmark`), as the report shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.report.tables import MISSING, bytes_text, ms_text

FILE = "report/benchmark.json"
SLOWEST = 10  # layers shown of each engine; the file has them all


@dataclass(frozen=True)
class Timed:
    """A benchmark: `where` it ran, a row of texts for each engine, and the `slowest` layers of each with milliseconds
    and share."""

    where: str
    rows: list[tuple[str, ...]]
    slowest: dict[str, list[tuple[str, str, str]]]
    warnings: list[str]


def read(artifact: Artifact) -> Timed | None:
    """What the last benchmark wrote; None where there was none. Raises UserError where its file is damaged."""
    path = artifact.root / FILE
    if not path.is_file():
        return None
    try:
        return _timed(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not what engines.benchmark writes (damaged or half-copied): run it again, or remove the file."
        ) from None


def _timed(content: dict[str, Any]) -> Timed:
    machine, found = content["machine"], content["engines"]
    rows, slowest, warnings = [], {}, []
    for name, engine in found.items():
        times = (f"{engine['compute_ms'][p]:.3f}" for p in ("p50", "p90", "p99"))
        peak = engine["peak_memory"]
        rows.append(
            (
                name, *times, str(engine["runs"]), bytes_text(engine["bytes"]),
                bytes_text(peak["bytes"]) if peak else MISSING, f"{engine['plugin_layers']} of {engine['layers']}",
            )
        )  # fmt: skip
        slowest[name] = [
            (layer["name"], ms_text(layer["average_ms"]), f"{layer['percent']:.1f} %")
            for layer in engine["profile"][:SLOWEST]
        ]
        warnings += [f"{name}: {warning}" for warning in engine["warnings"]]
    where = f"{content['preset']} on {machine['cpu']}, TensorRT {content['trtexec']}, {machine['date']}"
    return Timed(where, rows, slowest, warnings)
