"""What a run may cost and must keep: one row per option, and the line that says which budget held and which broke."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artifact.errors import UserError

MEGABYTE = 1e6  # decimal, as disks and data sheets count


@dataclass(frozen=True)
class Budget:
    """`option` of the command, `title` and `unit` of the figure that it bounds; `find` reads the figure from a result.

    `most`: the limit is a ceiling; otherwise a floor, at most `highest`.
    """

    option: str
    title: str
    unit: str
    most: bool
    find: Callable[[Mapping[str, Any]], float | None]
    highest: float = math.inf

    @property
    def key(self) -> str:
        """The option as a Python name."""
        return self.option.removeprefix("--").replace("-", "_")


BUDGETS = (
    Budget("--max-latency-ms", "latency p50", "ms", True, lambda r: r["latency"]["image"]["p50_ms"]),
    Budget("--max-step-ms", "step p50", "ms", True, lambda r: r["latency"]["step"]["p50_ms"]),
    Budget("--max-vram-mb", "peak memory", "MB", True, lambda r: r["memory"]["peak_bytes"] / MEGABYTE),
    Budget("--max-disk-mb", "disk", "MB", True, lambda r: r["disk"]["total_bytes"] / MEGABYTE),
    Budget("--min-psnr", "mean PSNR", "dB", False, lambda r: r["fidelity"]["psnr_db"]["mean"], highest=100),
    Budget("--min-ssim", "mean SSIM", "", False, lambda r: r["fidelity"]["ssim"]["mean"], highest=1),
    Budget(
        "--min-latent-cosine",
        "smallest latent cosine of a step",
        "",
        False,
        lambda r: min(r["fidelity"]["latent_cosine"]),
        highest=1,
    ),
    Budget(
        "--min-prompt-score",
        "prompt score",
        "",
        False,
        lambda r: r["prompt_score"] and r["prompt_score"]["right"],
        highest=1,
    ),
)


def limits(given: Mapping[str, float | None]) -> dict[str, float]:
    """The budgets that were given, by key. Raises UserError for a limit that means nothing."""
    found = {}
    for budget in BUDGETS:
        value = given.get(budget.key)
        if value is None:
            continue
        low_enough = value > 0 if budget.most else 0 <= value <= budget.highest
        if not (math.isfinite(value) and low_enough):
            wanted = "a number above 0" if budget.most else f"a number from 0 to {budget.highest:g}"
            raise UserError(f"{budget.option} is {value:g}: give {wanted}.")
        found[budget.key] = float(value)
    return found


def judge(result: Mapping[str, Any], given: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row for each budget that was given: `option`, `limit`, `value`, `unit`, `held` and the `line` that says so.

    `result` is that of `engines.validate.validate`. A figure equal to its limit holds; one that is not a number breaks.
    Raises UserError for a budget whose figure this run does not have.
    """
    rows = []
    for budget in BUDGETS:
        if budget.key not in given:
            continue
        limit, value = given[budget.key], budget.find(result)
        if value is None:
            raise UserError(f"{budget.option} cannot be judged, this run has no such figure: leave it out.")
        held = bool(value <= limit if budget.most else value >= limit)
        rows.append(
            {
                "option": budget.option,
                "title": budget.title,
                "limit": limit,
                "value": float(value),
                "unit": budget.unit,
                "held": held,
                "line": _line(budget, float(value), limit, held),
            }
        )
    return rows


def _line(budget: Budget, value: float, limit: float, held: bool) -> str:
    said = "holds" if held else ("is above" if budget.most else "is below")
    figure = " ".join(filter(None, (apart(value, limit), budget.unit)))
    return f"{budget.title} {figure} {said} {budget.option} {limit:.10g}"


def apart(value: float, limit: float) -> str:
    """`value` with three digits or so, or with as many as show on which side of `limit` it lies: 700.4, not 700."""
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 4
    for more in range(decimals, 17):
        text = f"{value:.{more}f}"
        if (float(text) > limit) - (float(text) < limit) == (value > limit) - (value < limit):
            return text
    return repr(value)  # NaN, or a hair's breadth


def refuse_uncheckable(prompts: Sequence[str]) -> None:
    """Raises UserError, before anything runs, where there can be no prompt score for these prompts."""
    from engines.checker import parse_caption

    for prompt in prompts:
        try:
            parse_caption(prompt)
        except ValueError:
            raise UserError(
                f"--min-prompt-score cannot be judged for {prompt!r}: only captions of the bundled models can be "
                "checked by geometry; leave it out."
            ) from None
