"""The report's numbers as rows of text, the same on the page and on the console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BASELINE = "fp16"
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One column of the overview: its heading, its unit, and whether "high" or "low" figures are better."""

    title: str
    unit: str
    better: str


@dataclass(frozen=True)
class Cell:
    """A figure as text, with a note under it (such as the ratio to the baseline)."""

    text: str
    note: str = ""
    best: bool = False


COLUMNS = (
    Column("PSNR", "dB", "high"),
    Column("SSIM", "", "high"),
    Column("Prompt score", "images right", "high"),
    Column("Layer error", "mean, relative", "low"),
    Column("Size", "on disk", "low"),
    Column("Step", "ms, median", "low"),
    Column("Image", "ms, median", "low"),
    Column("Peak memory", "resident", "low"),
)


def bytes_text(count: float) -> str:
    """Decimal units, three digits: 843 B, 9.20 MB, 23.8 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"


def ms_text(milliseconds: float) -> str:
    """Milliseconds to three digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def percent_text(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def baseline(results: dict[str, Any]) -> dict[str, Any] | None:
    """The 16-bit preset's entry, where it was measured."""
    return next((p for p in results["presets"] if p["name"] == BASELINE), None)


def measured(results: dict[str, Any]) -> bool:
    """Whether the presets were run, or only described."""
    return bool(results["prompts"])


def overview(results: dict[str, Any]) -> list[tuple[str, list[Cell]]]:
    """One row per preset, one cell per column of COLUMNS; the best of several quantised presets is marked."""
    base = baseline(results)
    figures = [_figures(p) for p in results["presets"]]
    rows = []
    for p, numbers in zip(results["presets"], figures, strict=True):
        quantised = [f for q, f in zip(results["presets"], figures, strict=True) if q["name"] != BASELINE]
        cells = []
        for k, (column, number) in enumerate(zip(COLUMNS, numbers, strict=True)):
            best = p["name"] != BASELINE and number is not None and number == _best(column, [f[k] for f in quantised])
            cells.append(_cell(column, number, p, base, best))
        rows.append((p["name"], cells))
    return rows


def _best(column: Column, numbers: list[float | None]) -> float | None:
    """The number to mark: None where there is nothing to choose between."""
    known = {n for n in numbers if n is not None}
    if len(known) < 2:
        return None
    return max(known) if column.better == "high" else min(known)


def _figures(p: dict[str, Any]) -> list[float | None]:
    """A preset's figures in the order of COLUMNS."""
    score, error, fidelity = p["prompt_score"], p["layer_error"], p["fidelity"]
    latency, memory = p["latency"], p["memory"]
    return [
        fidelity and fidelity["psnr_db"]["mean"],
        fidelity and fidelity["ssim"]["mean"],
        score and score["right"],
        error and error["mean"],
        p["size"]["total_bytes"],
        latency and latency["step"]["median_ms"],
        latency and latency["image"]["median_ms"],
        memory and memory["peak_bytes"],
    ]


def _cell(column: Column, number: float | None, p: dict[str, Any], base: dict[str, Any] | None, best: bool) -> Cell:
    if number is None:
        return Cell(MISSING)
    if column.title == "PSNR":
        return Cell(f"{number:.2f}", f"min {p['fidelity']['psnr_db']['min']:.1f}", best)
    if column.title == "SSIM":
        return Cell(f"{number:.4f}", f"min {p['fidelity']['ssim']['min']:.3f}", best)
    if column.title == "Prompt score":
        return Cell(percent_text(number), f"of {p['prompt_score']['of']}", best)
    if column.title == "Layer error":
        return Cell(percent_text(number), f"max {percent_text(p['layer_error']['max'])}", best)
    if column.title == "Peak memory":
        return Cell(bytes_text(number), f"{bytes_text(p['memory']['before_load_bytes'])} libraries", best)
    text = ms_text(number) if column.unit.startswith("ms") else bytes_text(number)
    if base is None or base is p:
        return Cell(text, "baseline" if base is p else "", best)
    of_base = _figures(base)[COLUMNS.index(column)]
    return Cell(text, f"× {number / of_base:.2f} of {BASELINE}" if of_base else "", best)


def comparison(results: dict[str, Any]) -> dict[str, list[str]]:
    """Component names over all presets for the tables by component: those that ran, and those on disk."""
    presets = results["presets"]
    return {
        "ran": list(dict.fromkeys(c for p in presets if p["latency"] for c in p["latency"]["components"])),
        "stored": list(dict.fromkeys(c for p in presets for c in p["size"]["components"])),
    }


def headline(results: dict[str, Any]) -> str:
    """The report in one sentence: what the main preset costs and gives against the 16-bit one."""
    main = next((p for p in results["presets"] if p["name"] != BASELINE), results["presets"][0])
    if not measured(results):
        return f"{main['name']} takes {bytes_text(main['size']['total_bytes'])} on disk; nothing was run."
    psnr, count = main["fidelity"]["psnr_db"]["mean"], len(results["prompts"])
    said = f"{main['name']} reproduces the 16-bit images at {psnr:.1f} dB PSNR (mean of {count} prompts)"
    base = baseline(results)
    if base is not None and base is not main:
        said += (
            f", takes {bytes_text(main['size']['total_bytes'])} on disk ({BASELINE}: "
            f"{bytes_text(base['size']['total_bytes'])}) and {ms_text(main['latency']['step']['median_ms'])} ms a "
            f"step ({BASELINE}: {ms_text(base['latency']['step']['median_ms'])} ms)"
        )
    return said + "."


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know to read the numbers right: conditions, and what was not done."""
    said = []
    if not measured(results):
        said.append(
            "Nothing was measured: the build drew no references (--references 0). Layer errors, sizes and predictions "
            "follow."
        )
        return [*said, *results["skipped"]]
    if results["target"] == "cpu":
        said.append(
            "Latency and memory are those of the portable graphs in onnxruntime. It computes a 4-bit layer in float32 "
            "after unpacking and rounding it, so they say nothing about the fused TensorRT layer on a GPU; fidelity "
            "and size carry over."
        )
    machine = results["machine"]
    if machine["load_1min"] > machine["cores"] / 2:
        said.append(
            f"Other processes were running: the load was {machine['load_1min']} on {machine['cores']} cores "
            "when the measurement began, so times scatter."
        )
    if any(p["prompt_score"] is None for p in results["presets"]):
        said.append("Prompt score was skipped: only captions of the bundled models can be checked by geometry.")
    return [*said, *results["skipped"]]


def layer_rows(layers: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Quantised layers, the worst first."""
    return sorted(layers.items(), key=lambda item: -item[1]["error"])
