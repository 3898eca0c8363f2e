"""`python -m engines.benchmark OUT`: trtexec on the engines of an artifact, its figures as a table, as JSON and in the
report.

It times each engine alone, at the shapes that it was tuned for, without transfers. What an image costs, with all
steps and components, is measured by `python -m engines.run` and the report.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.command import reported
from artifact.errors import UserError
from artifact.files import write_json
from artifact.manifest import Artifact
from engines import machine
from engines.memory import Probe, Recorder
from engines.report.timed import FILE as RESULT
from engines.shapes import graph_inputs
from engines.trt import layers, plan, plugin, trtexec
from engines.trt import machine as device
from engines.trt.plan import Plan
from engines.trt.versions import Version

PERIOD_S = 0.02  # between two looks at the device's free memory
SLOWEST = 5  # layers shown of each engine; the JSON has them all

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory with engines (`python -m engines.build`).")],
    preset: Annotated[str | None, typer.Option(help="Preset; the artifact's first if not given.")] = None,
    component: Annotated[str | None, typer.Option(help="One component only, such as transformer.")] = None,
    seconds: Annotated[int, typer.Option(min=1, help="How long each engine is timed.")] = 10,
    weight_budget: Annotated[
        str | None, typer.Option(help="Weight streaming: bytes, or a percentage, of weights kept on the GPU.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Time the engines in OUT with trtexec; write the figures to report/benchmark.json and into report.html."""
    with reported(debug):
        artifact = Artifact.open(out)
        chosen = preset or artifact.manifest["presets"][0]
        tool = trtexec.require()
        results = benchmark(artifact, chosen, tool, component, seconds, weight_budget)
        show(results)
        print(f"\n{artifact.root / RESULT}")
        print(_reported(artifact))


def _reported(artifact: Artifact) -> str:
    """Put the figures into the artifact's report; its path, or why there is none here."""
    from engines.report import read_report, write_page

    if not (artifact.root / "report.json").is_file():
        return "The artifact was not measured, so it has no report to put them into."
    try:
        return str(write_page(artifact, read_report(artifact)))
    except ModuleNotFoundError as e:
        return f"{e.name} is not installed here: `python -m engines.report` puts them into report.html where it is."


def benchmark(
    artifact: Artifact, preset: str, tool: Path, component: str | None = None, seconds: int = 10,
    weight_budget: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run trtexec on every engine of `preset` (or that of `component`) and write and return what it says.

    {"machine", "trtexec", "preset", "seconds", "engines": {component: {"compute_ms", "latency_ms" (p50, p90, p99,
    mean), "runs", "throughput_qps", "bytes", "peak_memory" {"bytes", "of"} or None, "layers", "plugin_layers",
    "profile" (slowest first), "warnings"}}}. trtexec says nothing of its peak memory: it is what the device lost
    while it ran, so that other processes count, too. Its times lie beside each engine (Plan.times) from then on.
    Raises UserError for an engine that is missing, of another machine, or that trtexec does not run.
    """
    version = trtexec.version(tool)
    names = list(artifact.manifest["components"])
    if component is not None and component not in names:
        raise UserError(f"{artifact.root} has no component {component!r}: it has {', '.join(names)}.")
    found: dict[str, Any] = {}
    for name in [component] if component else names:
        built = plan.find(artifact, name, preset, tensorrt=version)
        found[name] = _time(artifact, built, tool, version, seconds, weight_budget)
    results = {
        "machine": machine.describe(), "trtexec": str(version), "preset": preset, "seconds": seconds, "engines": found,
    }  # fmt: skip
    write_json(artifact.root / RESULT, results)
    return results


def _time(
    artifact: Artifact, built: Plan, tool: Path, version: Version, seconds: int, weight_budget: str | None
) -> dict[str, Any]:
    metadata = built.metadata
    if weight_budget is not None and not metadata["weight_streaming"]:
        raise UserError(f"{built.path.name} was not built with --weight-streaming: build it so, or give no budget.")
    profile = metadata["profiles"][0]
    inputs = graph_inputs(artifact.tensorrt(metadata["component"], metadata["preset"]))
    shapes = {i.name: profile[i.name]["opt"] for i in inputs if any(isinstance(d, str) for d in i.dims)}
    needs = metadata["plugin_sha256"] and not metadata["plugin_in_plan"]
    library = plugin.path_in(artifact, metadata["sm"], version) if needs else None
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        out = trtexec.Files(str(root / "profile"), str(root / "times"), str(root / "layers"))
        words = trtexec.benchmark_arguments(
            version, built.path, library, shapes, out, seconds, weight_budget, metadata["plugin_in_plan"]
        )
        with _Watched() as watched:
            code, log = trtexec.run([str(tool), *words])
        if code:
            raise UserError(f"trtexec {version} does not run {built.path.name} ({trtexec.failure(code, log)}).")
        slow, information = (_text(Path(p), version) for p in (out.model, out.layers))
        measured = trtexec.read_times(Path(out.plan))
        shutil.copyfile(out.plan, built.times)
    summary = trtexec.read_summary(log)
    listed = layers.parse(information)
    return {
        "compute_ms": trtexec.percentiles(measured["compute_ms"]),
        "latency_ms": trtexec.percentiles(measured["latency_ms"]),
        "runs": len(measured["compute_ms"]),
        "throughput_qps": summary.get("throughput_qps"),
        "bytes": metadata["bytes"],
        "peak_memory": watched.peak,
        "layers": len(listed),
        "plugin_layers": sum(layer.is_plugin for layer in listed),
        "profile": trtexec.read_profile(slow),
        "warnings": summary["warnings"],
    }


class _Watched:
    """The most that the device lost of its free memory within the block: `peak`, None where nobody tells."""

    def __init__(self) -> None:
        before = device.free_bytes()
        self.peak: dict[str, Any] | None = None
        self._recorder = None
        if before is not None:
            name, free = before

            def lost() -> int:
                now = device.free_bytes()
                return max(0, free - now[1]) if now else 0

            self._recorder = Recorder(Probe(name, lost), PERIOD_S)

    def __enter__(self) -> _Watched:
        if self._recorder:
            self._recorder.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._recorder:
            self._recorder.__exit__(*raised)
            self.peak = {"bytes": self._recorder.peak_bytes, "of": self._recorder.probe.name}


def _text(path: Path, version: Version) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"trtexec {version} ended well but wrote no {path.name}: run it again.") from None


def show(results: dict[str, Any]) -> None:
    """The figures as a table, and the slowest layers of every engine."""
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "p50 ms", "p90 ms", "p99 ms", "runs", "MiB", "peak MiB", "layers", "in the plugin")
    for name, row in results["engines"].items():
        times = (f"{row['compute_ms'][p]:.3f}" for p in ("p50", "p90", "p99"))
        size = f"{row['bytes'] / 2**20:.1f}"
        peak = f"{row['peak_memory']['bytes'] / 2**20:.0f}" if row["peak_memory"] else "–"
        table.add_row(name, *times, str(row["runs"]), size, peak, str(row["layers"]), str(row["plugin_layers"]))
    console = Console()
    console.print(table)
    for name, row in results["engines"].items():
        slowest = Table(f"{name}: slowest layers", "mean ms", "%")
        for layer in row["profile"][:SLOWEST]:
            slowest.add_row(layer["name"], f"{layer['average_ms']:.4f}", f"{layer['percent']:.1f}")
        console.print(slowest)
        for warning in row["warnings"]:
            print(f"warning: {name}: {warning}")


if __name__ == "__main__":
    app()
