"""`python -m engines.build OUT`: TensorRT engines of an artifact, or the script that builds them on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.command import reported
from artifact.manifest import Artifact

EXAMPLES = """\
Examples:

\b
  python -m engines.build out/flux
      engines for the GPU of this machine

\b
  python -m engines.build out/flux --target agx-orin
      elsewhere than on one: the script and the plugin's library that an AGX Orin needs

\b
  python -m engines.build out/flux --resolution 1024,768x1024 --batch 2 --refit
      for these sizes (the first is tuned for), two images a call, weights exchangeable
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(epilog=EXAMPLES)
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory, as `python -m export.build` printed it.")],
    target: Annotated[str, typer.Option(help="Device: `python -m engines.targets` lists them.")] = "auto",
    preset: Annotated[str | None, typer.Option(help="Preset to build; the artifact's first if not given.")] = None,
    resolution: Annotated[
        str, typer.Option(help="Sizes, 768 or 1024x768 (width first), comma separated, the one to tune for first.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Images that one call may draw.")] = 1,
    builder: Annotated[str, typer.Option(help="api, trtexec, or auto: the first of them that is here.")] = "auto",
    refit: Annotated[
        bool, typer.Option("--refit", help="Weights can be exchanged later (LoRA); may cost speed.")
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay in host memory at run time.")
    ] = False,
    plugin_in_plan: Annotated[
        bool, typer.Option("--plugin-in-plan", help="Put the plugin's library into the engine.")
    ] = False,
    plugin: Annotated[Path | None, typer.Option(help="The plugin's library, if it is not to be built.")] = None,
    script_only: Annotated[bool, typer.Option("--script-only", help="Write the script, build nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Build the TensorRT engines of the artifact in OUT for a device, and the script that does so on it."""
    with reported(debug):
        from engines import targets
        from engines.trt.build import build_engines
        from engines.trt.job import Options
        from engines.trt.profiles import parse_size

        def say(text: str) -> None:
            if not quiet or text.startswith("warning"):
                print(text, flush=True)

        artifact = Artifact.open(out)
        device = targets.find(target)
        if target == "auto" and device.sm is None:
            device = targets.find(artifact.manifest["target"])  # built for a device, then: its script
        if target == "auto" and device.sm is None:
            say(f"skipped: No TensorRT engine was built: {_no_target()}; name a device with --target for its script.")
            return
        sizes = [parse_size(part) for part in resolution.split(",") if part.strip()]
        with _bars(quiet) as progress:
            built = build_engines(
                artifact,
                preset or artifact.manifest["presets"][0],
                device,
                sizes,
                builder,
                Options(batch, plugin_in_plan, refit, weight_streaming),
                plugin,
                script_only,
                say,
                progress,
            )
        for sentence in built.skipped:
            say(f"skipped: {sentence}")
        for plan in built.plans:
            say(f"{plan.path}  {plan.metadata['bytes'] / 2**20:.1f} MiB")
        say(f"script for a {device.title}: {built.script}")


def _no_target() -> str:
    from engines.trt import machine

    sm = machine.sm()
    return "this machine has no NVIDIA GPU" if sm is None else f"sm_{sm} is in no row of `python -m engines.targets`"


class _bars:
    """TensorRT's phases as rich bars, one for each that runs; None where nothing is to be shown."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total)
        self._progress.update(self._tasks[phase], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(phase))


if __name__ == "__main__":
    app()
