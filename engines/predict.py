"""Latency and memory on a device that is not at hand: `python -m engines.predict OUT --target orin-nano`.

Counts operations and bytes per node; a target's row (engines/targets.py) or, for cpu, micro-benchmarks of this machine
turn them into time. docs/predict.md explains the model.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.command import reported
from artifact.errors import UserError
from artifact.manifest import Artifact
from engines.cost.measured import Measured, of_report
from engines.cost.prediction import Band, Prediction, check, predict
from engines.targets import TABLE_WIDTH

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_FITS = {"resident": "fits, all components at once", "pipelined": "fits only with components loaded in turn",
         "no": "does not fit", None: "memory of the target unknown"}  # fmt: skip


def measured_ceilings(
    artifact: Artifact, preset: str | None, size: tuple[int, int, int], threads: int | None, again: bool, progress: Any
) -> Any:
    """What this machine can do, for all nodes of a preset's graphs and for the host work of an image of `size` (batch,
    height, width); what is missing is measured and kept.

    With `again` everything that the graphs need is measured anew.
    """
    from engines.cost import cpu, host, structure
    from engines.cost.ceilings import ALWAYS, Ceilings
    from engines.cost.prediction import calls_per_image
    from engines.pipeline import choose
    from engines.shapes import input_shapes

    preset = choose(artifact, preset)
    calls = calls_per_image(artifact, 1)
    models = {n: artifact.model(n, preset) for n in calls}
    needed = cpu.keys(cpu.graph(m, input_shapes(artifact, n, m)) for n, m in models.items())
    ceilings = Ceilings.cached(threads)
    if again:
        ceilings.seconds = {k: v for k, v in ceilings.seconds.items() if k not in needed and k not in ALWAYS}
    missing = ceilings.missing(needed)
    if missing:
        ceilings.measure(missing, progress=progress)
        ceilings.save()
    if again or ceilings.structure is None:
        ceilings.structure = structure.measure()
        ceilings.save()
    if again or host.key(artifact, size) not in ceilings.seconds:
        host.Host(artifact, preset, size, calls, threads).measure(ceilings)
        ceilings.save()
    return ceilings


def _bytes(count: float) -> str:
    from engines.report.tables import bytes_text

    return bytes_text(count)


def _bytes_range(band: Band) -> str:
    return f"{_bytes(band.expected)} ({_bytes(band.low)} to {_bytes(band.high)})"


def _doubt(p: Prediction) -> str:
    """That what fits as expected does not at the upper end of its band."""
    bands = {"resident": p.resident_band, "pipelined": p.pipelined_band}
    if p.usable_bytes is None or p.fits not in bands or bands[p.fits].high <= p.usable_bytes:
        return ""
    return ", but not at the upper end of the band"


def _range(band: Band | None, unit: str = "") -> str:
    if band is None:
        return "–"
    if unit == "s":
        return f"{band.expected / 1e3:.3g} ({band.low / 1e3:.3g} to {band.high / 1e3:.3g})"
    return f"{band.expected:.3g} ({band.low:.3g} to {band.high:.3g})"


def _off(predicted: Band | None, measured_ms: float) -> str:
    """Measured milliseconds, and by how much the prediction is off."""
    return f"{measured_ms:.3g}" + (f" ({predicted.expected / measured_ms - 1:+.0%})" if predicted else "")


def show(prediction: Prediction, title: str, measured: Measured | None = None) -> None:
    """Print the prediction as a table with its assumptions, beside what was measured of the same."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    table = Table(title=f"{prediction.preset} on {title}", title_justify="left")
    beside = ["measured\n(off)"] if measured else []
    for heading in ("component", "calls", "ms a call\n(band)", *beside, "Gop", "MB moved", "weights", "activations"):
        name = heading == "component"
        table.add_column(heading, justify="left" if name else "right", no_wrap=name)
    for c in prediction.components:
        found = measured.components.get(c.name) if measured else None
        table.add_row(
            c.name, str(c.calls), _range(c.call_ms), *([_off(c.call_ms, found) if found else "–"] if measured else []),
            f"{c.operations / 1e9:.3g}", f"{c.moved_bytes / 1e6:.3g}", _bytes(c.weight_bytes),
            _bytes(c.activation_bytes + c.workspace_bytes),
        )  # fmt: skip
    console.print(table)
    tell = partial(console.print, highlight=False, soft_wrap=True)
    p = prediction
    size = f"{p.height} x {p.width}, {p.steps} steps" + (f", batch {p.batch}" if p.batch > 1 else "")
    tell(f"image ({size}): {_range(p.image_ms, 's')} s")
    if measured:
        date = measured.date[:10]
        tell(f"measured on {date}: {_off(p.image_ms, measured.image_ms)} ms an image")
    if p.host_ms is not None:
        tell(f"of that between the graphs: {_range(p.host_ms)} ms")
    of = f" of {_bytes(p.usable_bytes)} usable" if p.usable_bytes is not None else ""
    tell(
        f"memory: {_bytes_range(p.resident_band)} with everything loaded, {_bytes_range(p.pipelined_band)} "
        f"pipelined{of}: {_FITS[p.fits]}{_doubt(p)}"
    )
    own = p.runtime_bytes + sum(c.structure_bytes for c in p.components)
    tell(f"of that the runtime's own: {_bytes(own)}")
    if p.unverified:
        tell(f"[yellow]unverified[/yellow] figures of the target: {', '.join(p.unverified)}")
    for sentence in p.assumptions:
        tell(f"- {sentence}")


def _counter() -> Any:
    """Progress of the micro-benchmarks on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("measuring this machine", total=None)

    def step(done: int, of: int) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=of)
        if done == of:
            bar.stop()

    return step


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory.")],
    target: Annotated[str, typer.Option(help="A row of engines/targets.py, or auto.")] = "auto",
    preset: Annotated[str | None, typer.Option(help="Preset; the artifact's first if not given.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own if not given.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model's own if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (target cpu); one per core if not given.")]
    = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine again (target cpu).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:  # fmt: skip
    """Predict latency per component and image, peak memory and whether it fits."""
    with reported(debug):
        from engines import targets

        row = targets.find(target)
        is_cpu = row.compute_capability is None
        if not is_cpu and (measure or threads):
            raise UserError("--measure and --threads are about this machine's CPU: give --target cpu, or leave them.")
        artifact = Artifact.open(out, verify=False)
        generation = artifact.manifest["generation"]
        check(
            artifact, height or generation["height"], width or generation["width"],
            generation["num_inference_steps"] if steps is None else steps, batch,
        )  # fmt: skip
        progress = None if as_json else _counter()
        pixels = batch, height or generation["height"], width or generation["width"]
        ceilings = measured_ceilings(artifact, preset, pixels, threads, measure, progress) if is_cpu else None
        predicted = predict(artifact, row, preset, height, width, steps, batch, ceilings)
        measured = of_report(artifact, predicted, threads) if is_cpu else None
        if as_json:
            print(json.dumps(predicted.to_json() | {"measured": measured and measured.to_json()}))
        else:
            show(predicted, row.title, measured)


if __name__ == "__main__":
    app()
