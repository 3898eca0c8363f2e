"""Draw an image with an artifact: `python -m engines.run OUT --prompt "..." --output image.png`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.command import reported
from artifact.errors import UserError
from artifact.files import written_whole
from artifact.manifest import Artifact
from artifact.pictures import read_image
from engines.backends import BACKENDS, choose_backend
from engines.memory import Recorder, probe
from engines.modes import MODES
from engines.pictures import check_given

EXAMPLES = """\
Examples:

\b
  python -m engines.run out/shapes --prompt "a large red circle on white" --output circle.png
  python -m engines.run out/flux --preset svdq-int4 --steps 4 --seed 7 --prompt "a red fox in snow" --output fox.png
  python -m engines.run out/flux --image fox.png --strength 0.6 --prompt "the same in autumn" --output autumn.png
  python -m engines.run out/flux --image fox.png --mask sky.png --prompt "a night sky" --output night.png
  python -m engines.run out/fill --image fox.png --mask sky.png --prompt "a night sky" --output night.png
  python -m engines.run out/flux --max-memory 12GB --prompt "a red fox in snow" --output fox.png --verbose
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(epilog=EXAMPLES)
def run(
    out: Annotated[Path, typer.Argument(help="Artifact directory, as `python -m export.build` printed it.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    output: Annotated[Path, typer.Option(help="Image file to write (.png, .jpg, .webp).")],
    preset: Annotated[str | None, typer.Option(help="Preset to run; the artifact's first if not given.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image to start from, or to draw from beside the prompt.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Image that is white where --image is to be drawn anew.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of --image to change, in (0, 1] [default: 0.6].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model's own number if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise, 0 or more.")] = 0,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; the model's own if not given.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep out of the image.")] = None,
    backend: Annotated[str, typer.Option(help=f"What runs the graphs: {', '.join(BACKENDS)}.")] = "auto",
    memory: Annotated[str | None, typer.Option(help=f"What stays in memory: {', '.join(MODES)}.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory to stay within, such as 600MB or 2GiB; chooses --memory.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core if not given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print latencies, memory, and where nodes ran.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw PROMPT with the engines in OUT and write the image to OUTPUT."""
    with reported(debug):
        _check_output(output)
        if mask is not None and image is None:
            raise UserError(f"--mask {mask} was given without --image: give the image that it is to change.")
        start_image = None if image is None else read_image(image, f"--image {image}")
        fill = None if mask is None else read_image(mask, f"--mask {mask}")
        from engines.pipeline import EnginePipeline, choose  # after `reported` has silenced the libraries

        artifact = Artifact.open(out)
        check_given(artifact, start_image, fill, strength)  # before anything is loaded
        preset = choose(artifact, preset)
        backend = choose_backend(artifact, preset, backend)
        with (
            Recorder(probe(backend)) as recorder,
            EnginePipeline(artifact, preset, threads, backend, memory, max_memory) as pipe,
            _bar(quiet) as progress,
        ):
            # Imports and tokenizers are not the image's time.
            pipe.diffusers(pipe.task(start_image, fill))
            start = time.perf_counter()
            drawn = pipe(
                prompt,
                image=start_image,
                mask=fill,
                strength=strength,
                steps=steps,
                seed=seed,
                height=height,
                width=width,
                guidance=guidance,
                negative_prompt=negative_prompt,
                progress=progress,
            )
            seconds = time.perf_counter() - start
            with written_whole(output) as partial:
                drawn.save(partial, format=_format(output))
        if not quiet:
            print(f"{output}: {drawn.width} x {drawn.height}, preset {pipe.preset}, seed {seed}, {seconds:.2f} s")
        if verbose:
            _print_latencies(pipe)
            print(f"memory  {pipe.mode}, peak {recorder.peak_bytes / 1e6:.0f} MB ({recorder.probe.name})")
            for name, placement in pipe.placements.items():
                print(f"nodes   {name}: {placement}")


def _format(path: Path) -> str | None:
    """Pillow's name for the format that the file's suffix asks for; None where it cannot write such a file."""
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    return name if name in Image.SAVE else None


def _check_output(path: Path) -> None:
    """Refuse an output before minutes are spent on it."""
    if path.is_dir():
        raise UserError(f"--output {path} is a directory: name a file in it, such as {path / 'image.png'}.")
    if _format(path) is None:
        raise UserError(f"--output {path} has no image suffix that can be written: end it in .png, .jpg or .webp.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as e:
        raise UserError(f"--output {path} cannot be written ({e.strerror}): choose another place.") from None


class _bar:
    """A rich progress bar as a `Progress` callable; None where nothing is to be shown."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)

    def __enter__(self) -> Any:
        self._progress.start()
        task = self._progress.add_task("preparing", total=None)
        return lambda done, total, what: self._progress.update(task, completed=done, total=total, description=what)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _print_latencies(pipe: Any) -> None:
    """Calls and time of every component that ran."""
    from rich.console import Console
    from rich.table import Table

    table = Table("component", "calls", "mean ms", "total ms")
    for name, session in pipe.sessions.items():
        if calls := session.latencies_ms:
            table.add_row(name, str(len(calls)), f"{sum(calls) / len(calls):.1f}", f"{sum(calls):.1f}")
    Console().print(table)


if __name__ == "__main__":
    app()
