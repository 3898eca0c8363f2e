"""The report's memory over time: one curve per memory mode from the load to the end of the first image."""

from __future__ import annotations

from typing import Any

from engines.report.tables import bytes_text

MODE_COLOURS = {"resident": "#8a929e", "pipelined": "#2b5fc4", "streaming": "#1d8a63"}
NEAR = 0.03  # of the time axis: names that lie nearer to each other are put above one another


def rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A row per mode: its name, its peak, and what it saves of the first mode's. Nothing for a report without."""
    found = results.get("memory_over_time")
    if not found:
        return []
    first, before = found["modes"][0]["peak_bytes"], found["before_load_bytes"]
    made: list[tuple[str, str, str]] = []
    for run in found["modes"]:
        of_engines = f"{bytes_text(max(run['peak_bytes'] - before, 0))} above the libraries"
        saved = first - run["peak_bytes"]
        share = f", {100 * abs(saved) / max(first - before, 1):.0f} % {'less' if saved >= 0 else 'more'}"
        made.append((run["mode"], bytes_text(run["peak_bytes"]), of_engines + (share if made else "")))
    return made


def plot(results: dict[str, Any]) -> bytes | None:
    """Bytes above the libraries over seconds, a panel per mode, with the components named where they come and go.

    None for a report without this measurement.
    """
    from matplotlib.figure import Figure

    from engines.report.plots import _svg

    found = results.get("memory_over_time")
    if not found:
        return None
    runs, before = found["modes"], found["before_load_bytes"]
    figure = Figure(figsize=(9.6, 2.5 * len(runs) + 0.4), layout="constrained")
    panels = figure.subplots(len(runs), 1, sharey=True, squeeze=False)[:, 0]
    top = max((r["peak_bytes"] - before) / 1e6 for r in runs)
    for axes, run in zip(panels, runs, strict=True):
        colour = MODE_COLOURS[run["mode"]]
        times = [t for t, _ in run["samples"]]
        held = [(b - before) / 1e6 for _, b in run["samples"]]
        axes.fill_between(times, held, color=colour, alpha=0.18, linewidth=0)
        axes.plot(times, held, color=colour, linewidth=1.2, label=run["mode"])
        axes.axhline((run["peak_bytes"] - before) / 1e6, color=colour, linewidth=0.7, linestyle=":")
        axes.set_ylim(0, 1.9 * top)  # the names stand above the curve
        axes.set_xlim(0, max(times))
        axes.set_ylabel("MB above libraries")
        _name_marks(axes, run["marks"], max(times), top)
        if axes is not panels[-1]:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0, handlelength=1.4)
    panels[-1].set_xlabel("seconds since the load began, until the first image")
    return _svg(figure, panels[-1])


def _name_marks(axes: Any, marks: list[list[Any]], seconds: float, top: float) -> None:
    """A line at every mark; "+" where a component comes, "−" where it goes, the step's number under the top edge."""
    last, level = -1.0, 0
    for t, what in marks:
        verb, _, name = what.partition(" ")
        if verb == "image":
            continue
        if verb == "step":
            axes.axvline(t, ymax=0.55, color="#c9ced6", linewidth=0.5)
            continue
        axes.axvline(t, ymax=0.58, color="#4a5361", linewidth=0.6)
        level = (level + 1) % 5 if t - last < NEAR * seconds * 4 else 0
        last = t
        sign = {"load": "+", "free": "−"}[verb]
        side = "right" if t > 0.85 * seconds else "left"
        axes.text(t, top * (1.12 + 0.15 * level), f"{sign} {name}", fontsize=7, color="#4a5361", va="bottom", ha=side)
