"""The report's "what would run where": every preset on every target, as a table and as a figure."""

from __future__ import annotations

from typing import Any

from engines.report.tables import MISSING, Cell, bytes_text

FITS = {"resident": "fits", "pipelined": "fits in turn", "no": "too large", None: MISSING}


def rows(results: dict[str, Any]) -> list[tuple[str, list[Cell]]]:
    """A row per target: its title, then a cell per preset. Nothing for a report without predictions."""
    found: dict[str, list[Cell]] = {}
    for row in results.get("where", []):
        mark = "*" if row["unverified"] else ""
        found.setdefault(f"{row['title']}{mark}", []).append(_cell(row))
    return list(found.items())


def _cell(row: dict[str, Any]) -> Cell:
    measured = "" if row["measured_s"] is None else f"measured {seconds_text(row['measured_s'])} s"
    if row["image_s"] is None:
        return Cell(MISSING, measured or "no prediction")
    image = row["image_s"]
    text = f"{seconds_text(image['expected'])} s"
    band = f"{seconds_text(image['low'])} to {seconds_text(image['high'])}"
    parts = [band, f"{bytes_text(row['resident_bytes'])}, {FITS[row['fits']]}", measured]
    return Cell(text, " · ".join(p for p in parts if p))


def seconds_text(seconds: float) -> str:
    """Seconds to two digits below 10, whole above: 0.021, 3.4, 128."""
    return f"{seconds:.0f}" if seconds >= 9.95 else f"{seconds:.2g}"


def reasons(results: dict[str, Any]) -> list[str]:
    """Why there is no prediction, once for each reason."""
    return list(dict.fromkeys(row["why"] for row in results.get("where", []) if row["why"]))


def plot(results: dict[str, Any], colours: dict[str, str]) -> bytes | None:
    """Seconds per image on a log axis: a line from best to worst case with a dot at the expectation, per target and
    preset; a diamond where it was measured; a cross for what does not fit. None where nothing was predicted."""
    from engines.report.plots import _axes, _svg

    known = [r for r in results.get("where", []) if r["image_s"] is not None]
    if not known:
        return None
    titles = list(dict.fromkeys(r["title"] for r in known))
    presets = list(dict.fromkeys(r["preset"] for r in known))
    figure, axes = _axes(1.2 + 0.16 * len(presets) * len(titles) + 0.12 * len(titles))
    step = 0.8 / len(presets)
    named = set()
    for r in known:
        at = titles.index(r["title"]) + step * (presets.index(r["preset"]) - (len(presets) - 1) / 2)
        colour, image = colours[r["preset"]], r["image_s"]
        label = r["preset"] if r["preset"] not in named else None
        named.add(r["preset"])
        axes.plot([image["low"], image["high"]], [at, at], color=colour, linewidth=1.6, alpha=0.55)
        marker = "x" if r["fits"] == "no" else "o"
        axes.plot(image["expected"], at, marker, color=colour, markersize=4.5, linestyle="", label=label)
        if r["measured_s"] is not None:
            axes.plot(r["measured_s"], at, "D", color=colour, markersize=4.5, markerfacecolor="none", linestyle="")
    axes.set_xscale("log")
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds per image, predicted: best, expected, worst")
    return _svg(figure, axes)
