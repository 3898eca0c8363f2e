"""trtexec's own timings: the JSON file that `trtexec --exportTimes=FILE` writes, the same from TensorRT 8.6 to 11.

A list with one object for each inference after trtexec's warm-up, milliseconds: `startEnqMs`, `endEnqMs`, ... and
`h2dMs`, `computeMs`, `d2hMs`, `latencyMs` = the sum of these three. Source: exportJSONTrace in
samples/common/sampleReporting.cpp of github.com/NVIDIA/TensorRT, read at v8.6.0, v10.3.0 and v11.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from artifact.errors import UserError, nearest
from engines.validation import drift, timing

LATENCY, COMPUTE = "latencyMs", "computeMs"


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


def read(path: Path) -> dict[str, Any]:
    """Percentiles and interval of `latencyMs` (as `timing.summary` has them, one call at a time), and more.

    `compute_p50_ms`: on the GPU alone, without the copies. `note`: the drift of the device, or None. Raises UserError
    for a file that is not trtexec's.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        latency = [float(r[LATENCY]) for r in records]
        compute = [float(r[COMPUTE]) for r in records]
    except OSError as e:
        raise UserError(f"Cannot read {path} ({e.strerror}): give the file that trtexec --exportTimes wrote.") from None
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(
            f"{path} is not what trtexec --exportTimes writes ({type(e).__name__}: {e}): run trtexec again to its end."
        ) from None
    if not latency:
        raise UserError(f"{path} holds no inference: give trtexec a longer --duration or more --iterations.")
    bad = [t for t in latency if not (math.isfinite(t) and t > 0)]
    bad += [t for t in compute if not (math.isfinite(t) and t >= 0)]
    if bad:
        raise UserError(f"{path} holds a time of {bad[0]} ms: run trtexec again.")
    found = timing.summary([[t] for t in latency])
    return {
        "file": path.name,
        "inferences": len(latency),
        "compute_p50_ms": timing.summary([[t] for t in compute])["p50_ms"],
        **{k: v for k, v in found.items() if k != "calls"},
        "note": drift.sentence(drift.drift(latency)),
    }
