"""What the artifact's report measured of a preset on this machine, to be set beside a prediction of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import machine
from engines.cost.prediction import Prediction


@dataclass(frozen=True)
class Measured:
    """Medians in milliseconds: `components` of a call, `image_ms` from prompt to picture; `date` of the report."""

    components: dict[str, float]
    image_ms: float
    date: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def of_report(artifact: Artifact, predicted: Prediction, threads: int | None) -> Measured | None:
    """The report's figures of the same preset, image and threads; None where it was not measured so, or elsewhere.

    `predicted` must be of the cpu target.
    """
    from engines.report import read_report

    try:
        report = read_report(artifact)
    except UserError:  # none, or a damaged one: then there is nothing to compare with
        return None
    here, there, call = machine.describe(), report["machine"], report["generation"]
    asked = (predicted.height, predicted.width, predicted.steps, predicted.batch, threads)
    drawn = (call["height"], call["width"], call["num_inference_steps"], 1, report["settings"]["threads"])
    if asked != drawn or any(here[k] != there[k] for k in ("cpu", "cores")):
        return None
    latency = next((p["latency"] for p in report["presets"] if p["name"] == predicted.preset), None)
    if latency is None:
        return None
    components = {name: float(row["median_ms"]) for name, row in latency["components"].items()}
    return Measured(components, float(latency["image"]["median_ms"]), str(there["date"]))
