"""The report's figures, each an SVG without fonts or links of its own."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from engines.report import memory_plot, where
from engines.report.tables import BASELINE, measured

GREY = "#8a929e"
COLOURS = ("#2b5fc4", "#d97a1f", "#1d8a63", "#8750b8", "#bf3350", "#128a9c", "#7a6a2a")
SMALLEST = 1e-9  # floor of 1 - cosine on a log axis
TICKED = 60  # layers up to which every one has its name under the axis

STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": "#4a5361",
    "xtick.color": "#4a5361",
    "ytick.color": "#4a5361",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceff3",
    "svg.hashsalt": "report",  # equal numbers give equal bytes
    "legend.frameon": False,
}


def all_of(results: dict[str, Any]) -> dict[str, bytes | None]:
    """Every figure by its name on the page; None where there is nothing to draw."""
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        return {
            "latent_cosine": latent_cosine(results) if measured(results) else None,
            "latency": latency(results) if measured(results) else None,
            "layer_error": layer_error(results),
            "layer_bytes": layer_bytes(results),
            "memory_over_time": memory_plot.plot(results),
            "where": where.plot(results, colours(results)),
        }


def colours(results: dict[str, Any]) -> dict[str, str]:
    """A colour for every preset, the same in every figure."""
    others = [p["name"] for p in results["presets"] if p["name"] != BASELINE]
    return {BASELINE: GREY, **{n: COLOURS[i % len(COLOURS)] for i, n in enumerate(others)}}


def latent_cosine(results: dict[str, Any]) -> bytes:
    """1 - cosine between a preset's latents and the references' after every step, on a log axis."""
    figure, axes = _axes(3.0)
    for p in results["presets"]:
        away = np.maximum(1 - np.asarray(p["fidelity"]["latent_cosine"]), SMALLEST)
        axes.plot(
            range(1, len(away) + 1),
            away,
            marker="o",
            markersize=3.5,
            label=p["name"],
            color=colours(results)[p["name"]],
        )
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("denoising step")
    axes.set_ylabel("1 − cosine")
    return _svg(figure, axes)


def latency(results: dict[str, Any]) -> bytes:
    """Milliseconds per image by component, one stacked bar per preset."""
    presets = results["presets"]
    figure, axes = _axes(0.9 + 0.42 * len(presets))
    left = np.zeros(len(presets))
    components = list(dict.fromkeys(c for p in presets for c in p["latency"]["components"]))
    for k, component in enumerate(components):
        calls = [p["latency"]["components"].get(component, {"calls": 0, "median_ms": 0}) for p in presets]
        width = np.array([c["calls"] * c["median_ms"] for c in calls])
        axes.barh(
            [p["name"] for p in presets], width, left=left, height=0.6, label=component, color=COLOURS[k % len(COLOURS)]
        )
        left += width
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms per image (calls × median)")
    return _svg(figure, axes)


def layer_error(results: dict[str, Any]) -> bytes | None:
    """Relative output error of every quantised layer by block and number, a dot per preset."""
    if not results["layers"]:
        return None
    names = _layer_names(results)
    figure, axes = _axes(3.4 + (1.6 if len(names) <= TICKED else 0))
    for preset, layers in _in_order(results):
        at = [i for i, n in enumerate(names) if n in layers]
        axes.plot(
            at,
            [100 * layers[names[i]]["error"] for i in at],
            "o-",
            markersize=3.5,
            linewidth=0.6,
            label=preset,
            color=colours(results)[preset],
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("relative output error, %")
    _name_layers(axes, names)
    return _svg(figure, axes)


def layer_bytes(results: dict[str, Any]) -> bytes | None:
    """Bytes of every quantised layer beside its 16 bits, by block and number."""
    if not results["layers"]:
        return None
    names = _layer_names(results)
    figure, axes = _axes(3.4 + (1.6 if len(names) <= TICKED else 0))
    sixteen = {n: v["bytes_16bit"] for layers in results["layers"].values() for n, v in layers.items()}
    axes.bar(range(len(names)), [sixteen[n] / 1e3 for n in names], width=0.85, color="#d7dbe1", label="16 bits")
    for preset, layers in _in_order(results):
        at = [i for i, n in enumerate(names) if n in layers]
        axes.plot(
            at,
            [layers[names[i]]["bytes"] / 1e3 for i in at],
            "_",
            markersize=6,
            markeredgewidth=2,
            label=preset,
            color=colours(results)[preset],
        )
    axes.set_ylabel("kB")
    _name_layers(axes, names)
    return _svg(figure, axes)


def _layer_names(results: dict[str, Any]) -> list[str]:
    """Names by kind of block, then by number: JSON keeps no order that could be the model's."""
    names = {n for layers in results["layers"].values() for n in layers}
    return sorted(names, key=lambda n: [(int(p), "") if p.isdigit() else (0, p) for p in n.split(".")])


def _in_order(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The layers of every preset that has some, in the presets' order."""
    return [(p["name"], results["layers"][p["name"]]) for p in results["presets"] if p["name"] in results["layers"]]


def _name_layers(axes: Any, names: list[str]) -> None:
    axes.set_xlim(-1, len(names))
    if len(names) <= TICKED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
        axes.grid(axis="x", visible=False)
    else:
        axes.set_xlabel("layer, by block and number")


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any, axes: Any) -> bytes:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, borderaxespad=0, handlelength=1.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
