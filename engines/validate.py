"""Is an artifact fast, small and faithful enough? `python -m engines.validate OUT --max-latency-ms 700`."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.command import reported
from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.sampling import Progress, Sampled
from engines import evaluate, machine
from engines.backends import choose_backend
from engines.modes import import_libraries
from engines.pipeline import choose, load
from engines.validation import budgets, history, regression, table, trtexec_times
from engines.validation.accelerator import accelerator
from engines.validation.comparison import Comparison, choose_comparison
from engines.validation.disk import disk
from engines.validation.fidelity import drawn, fidelity
from engines.validation.latency import latency
from engines.validation.notes import notes
from engines.validation.process import WARM_UP, Run, record_apart

FORMAT = 1
HELD, BROKEN = 0, 1  # 2: could not run

EXAMPLES = """\
Examples:

\b
  python -m engines.validate out/shapes
  python -m engines.validate out/flux --max-latency-ms 9000 --max-vram-mb 12000 --min-psnr 20
  python -m engines.validate out/new --against out/old --against-preset svdq-int4 --min-ssim 0.98
  python -m engines.validate out/flux --prompts ours.txt --json > validation.json

Exit code 0: all budgets held; 1: one broke, and standard error says which; 2: it could not run.
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class CouldNotRun(Exception):
    """A fault of ours, with an exit code that no reader takes for a broken budget."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """How to run: `backend`, `threads`, `memory` and `max_memory` as `engines.load` takes them.

    `images` timed at least; `seconds` after which timing ends, narrow interval or not.
    """

    backend: str = "auto"
    threads: int | None = None
    memory: str | None = None
    max_memory: str | None = None
    images: int = 10
    seconds: float = 120.0


def validate(
    artifact: Artifact,
    preset: str,
    comparison: Comparison,
    settings: Settings,
    times: Mapping[str, Path] | None = None,
    limits: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a preset, judge it by `limits` (budgets.limits), and add the result to the artifact's history.

    `times`: by component the file of trtexec's times; for the others on TensorRT those beside the engines. Returns the
    result, whose fields docs/validate.md explains; where the history cannot be written, a note of it says so. Raises
    UserError where anything could not run; then the history stays as it was.
    """
    limits = limits or {}
    told = progress or (lambda done, total, what: None)
    manifest = artifact.manifest
    if "min_prompt_score" in limits:
        budgets.refuse_uncheckable(comparison.prompts)
    runs, damaged = history.read(artifact.root, FORMAT)
    backend = choose_backend(artifact, preset, settings.backend)
    kept = trtexec_times.beside_engines(artifact, preset) if backend == "tensorrt" else {}
    trtexec = {name: trtexec_times.read(path) for name, path in {**kept, **(times or {})}.items()}
    environment = {**machine.describe(), "accelerator": accelerator()}
    told(0, 0, f"{preset}: latency and memory, at most {settings.seconds:g} s")
    raw = record_apart(
        Run(
            str(artifact.root), preset, backend, comparison.prompts[0], settings.images, settings.seconds,
            settings.threads, settings.memory, settings.max_memory,
        )
    )  # fmt: skip
    timed = latency(raw["images_ms"], raw["calls_ms"], artifact.component("denoiser")[0], raw["steps"])
    own, other = _draw(artifact, preset, backend, comparison, settings, raw["mode"], told)
    result: dict[str, Any] = {
        "format": FORMAT,
        "name": manifest["name"],
        "source": manifest["source"],
        "preset": preset,
        "backend": backend,
        "mode": raw["mode"],
        "machine": environment,
        "versions": machine.versions(),
        "settings": {**asdict(settings), "warm_up": WARM_UP, "prompts_sha256": comparison.digest},
        "generation": manifest["generation"],
        "latency": {"load_s": raw["load_s"], **timed, "trtexec": trtexec},
        "memory": raw["memory"],
        "disk": disk(artifact, preset, backend),
        "fidelity": fidelity(own, comparison, other),
        "prompt_score": evaluate.prompt_score(own.images, comparison.prompts),
    }
    result["budgets"] = budgets.judge(result, limits)
    earlier = regression.last_comparable(runs, result)
    result["regression"] = earlier and {
        "date": regression.at(earlier, ("machine", "date")) or "unknown date",
        "versions": regression.at(earlier, ("versions",)) or {},
        "figures": regression.compare(earlier, result),
    }
    result["notes"] = [*notes(result), *raw["notes"], *([damaged] if damaged else [])]
    result["exit_code"] = BROKEN if any(not b["held"] for b in result["budgets"]) else HELD
    try:
        history.append(artifact.root, result)
    except UserError as e:  # a full or read-only disk must not cost the minutes that the result took
        result["notes"].append(f"This run is not in the history: {e}")
    return result


def _draw(
    artifact: Artifact,
    preset: str,
    backend: str,
    comparison: Comparison,
    settings: Settings,
    mode: str,
    told: Progress,
) -> tuple[Sampled, Sampled | None]:
    """What the preset draws of the comparison's prompts, and what the other side does where that is a preset."""
    import_libraries()
    with load(artifact.root, preset, settings.threads, verify=False, backend=backend, memory=mode) as pipe:
        own = drawn(pipe, comparison, f"{preset}: images", told)
    if comparison.artifact is None:
        return own, None
    # The other side is judged by its images, whatever draws them; but TensorRT only where this run may use it.
    theirs = "auto" if backend == "tensorrt" else backend
    root, name = comparison.artifact.root, comparison.preset
    with load(root, name, settings.threads, verify=False, backend=theirs, memory=mode) as pipe:
        return own, drawn(pipe, comparison, f"{name} of the other side: images", told)


def _run(
    out: Path,
    preset: str | None,
    against: Path | None,
    against_preset: str | None,
    prompts: Path | None,
    pictures: Path | None,
    times: list[str],
    limits: Mapping[str, float],
    settings: Settings,
    quiet: bool,
) -> dict[str, Any]:
    """Open what the command names, decide what is compared, and validate under a progress bar on stderr."""
    if not (math.isfinite(settings.seconds) and settings.seconds > 0):
        raise UserError(f"--max-seconds is {settings.seconds:g}: give a number above 0.")
    artifact = Artifact.open(out)
    chosen = choose(artifact, preset)
    files = trtexec_times.files_by_component(times, list(artifact.manifest["components"]))
    other = None if against is None else Artifact.open(against)
    comparison = choose_comparison(artifact, chosen, other, against_preset, prompts, pictures)
    with _bar(quiet) as progress:
        return validate(artifact, chosen, comparison, settings, files, limits, progress)


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """A progress bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:
        task = shown.add_task("reading", total=None)
        yield lambda done, total, what: shown.update(task, completed=done, total=total or None, description=what)


@contextlib.contextmanager
def _ours_ends_with_2(debug: bool) -> Iterator[None]:
    """A fault of ours must not end with 1, which says that a budget broke."""
    try:
        yield
    except Exception as e:
        if debug or isinstance(getattr(type(e), "exit_code", None), int):
            raise
        raise CouldNotRun(f"internal: {type(e).__name__}: {e} (run again with --debug to see where)") from e


@app.command(epilog=EXAMPLES)
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory, as `python -m export.build` printed it.")],
    preset: Annotated[str | None, typer.Option(help="Preset to judge; the artifact's first if not given.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another build of the same model, to compare images with.")
    ] = None,
    against_preset: Annotated[
        str | None, typer.Option(help="Compare with this preset's images, drawn from the same noise.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file of own prompts, one a line, compared with fp16's images of them.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Directory of pictures beside them, for pipelines that draw from one.")
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Budget: median from prompt to picture.")] = None,
    max_step_ms: Annotated[float | None, typer.Option(help="Budget: median of a denoising step.")] = None,
    max_vram_mb: Annotated[
        float | None, typer.Option(help="Budget: peak of the memory that the engines are in, in 10^6 bytes.")
    ] = None,
    max_disk_mb: Annotated[float | None, typer.Option(help="Budget: the preset's files, in 10^6 bytes.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="Budget: mean PSNR over the images, dB.")] = None,
    min_ssim: Annotated[float | None, typer.Option(help="Budget: mean structural similarity, 0 to 1.")] = None,
    min_latent_cosine: Annotated[
        float | None, typer.Option(help="Budget: cosine of the latents at the worst step, 0 to 1.")
    ] = None,
    min_prompt_score: Annotated[
        float | None, typer.Option(help="Budget: share of images that show their caption, 0 to 1 (bundled models).")
    ] = None,
    times: Annotated[
        list[str] | None,
        typer.Option(metavar="COMPONENT=FILE", help="Times that trtexec --exportTimes wrote; may be repeated."),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime or tensorrt.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="Memory mode: resident, pipelined or streaming.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Choose the memory mode that fits, such as 600MB or 2GiB.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Images that are timed at least.")] = 10,
    max_seconds: Annotated[float, typer.Option(help="Time after which the timing ends in any case.")] = 120.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of the table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but broken budgets and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure latency, memory, fidelity and disk of an artifact's preset, and judge them by budgets."""
    with reported(debug), _ours_ends_with_2(debug), contextlib.redirect_stdout(sys.stderr):
        limits = budgets.limits(
            {
                "max_latency_ms": max_latency_ms,
                "max_step_ms": max_step_ms,
                "max_vram_mb": max_vram_mb,
                "max_disk_mb": max_disk_mb,
                "min_psnr": min_psnr,
                "min_ssim": min_ssim,
                "min_latent_cosine": min_latent_cosine,
                "min_prompt_score": min_prompt_score,
            }
        )
        result = _run(out, preset, against, against_preset, prompts, pictures, times or [], limits,
                      Settings(backend, threads, memory, max_memory, runs, max_seconds), quiet)  # fmt: skip
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False))
    elif not quiet:
        table.show(result)
    for row in result["budgets"]:
        if not row["held"]:
            sys.stderr.write(f"broken: {row['line']}\n")
    raise SystemExit(result["exit_code"])


if __name__ == "__main__":
    app()
