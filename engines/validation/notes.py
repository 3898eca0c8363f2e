"""What a reader must know to read the numbers right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.validation.timing import NARROW


def notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences on this result: wide intervals, drift, a busy machine, budgets that are too close to call."""
    timed, machine = result["latency"], result["machine"]
    said = [*_wide(timed, result["settings"]["seconds"])]
    said += [timed["note"]] if timed["note"] else []
    said += [f"{name} (trtexec): {t['note']}" for name, t in timed["trtexec"].items() if t["note"]]
    if machine["load_1min"] > machine["cores"] / 2:
        said.append(
            f"Other processes were running: the load was {machine['load_1min']} on {machine['cores']} cores when the "
            "measurement began, so times scatter."
        )
    for row in result["budgets"]:
        name = {"--max-latency-ms": "image", "--max-step-ms": "step"}.get(row["option"])
        interval = name and timed[name]["interval"]
        if interval and interval["low_ms"] <= row["limit"] <= interval["high_ms"]:
            said.append(
                f"{row['option']} is too close to call: the limit lies within the median's confidence interval, "
                f"{interval['low_ms']:.4g} to {interval['high_ms']:.4g} ms."
            )
    return said


def _wide(timed: Mapping[str, Any], seconds: float) -> list[str]:
    """A sentence where timing ended before the medians of image and step were known to 5 %."""
    count = f"{timed['images']} image{'' if timed['images'] == 1 else 's'}"
    for name in ("image", "step"):
        interval = timed[name]["interval"]
        if interval is None:
            return [
                f"Timing ended after {count} in {timed['seconds']:.0f} s, too few for a confidence "
                f"interval (6 are needed): allow more than --max-seconds {seconds:g}."
            ]
        if interval["relative"] >= NARROW:
            width, wanted = (f"{100 * share:.3g} %" for share in (interval["relative"], NARROW))
            return [
                f"Timing ended after {count} in {timed['seconds']:.0f} s with a confidence interval "
                f"of the {name}'s median {width} wide, not under {wanted}: quieten the machine or allow more than "
                f"--max-seconds {seconds:g}."
            ]
    return []
