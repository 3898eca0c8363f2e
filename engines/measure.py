"""Latency and memory of one preset, in a process of its own: `python -m engines.measure OUT --preset svdq-int4`.

A process never gives back its peak, so a peak is honest only where nothing else ran before. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from artifact.command import reported
from artifact.free import trim
from artifact.manifest import Artifact
from engines.apart import Apart
from engines.memory import Recorder, probe
from engines.modes import MODES, import_libraries
from engines.references import Timed

WARM_UP = 1  # images drawn before any time counts
SAMPLES = 400  # of memory over time that are kept

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def measure(
    directory: Path | str,
    preset: str,
    repeats: int = 3,
    threads: int | None = None,
    memory: str = "resident",
    backend: str = "onnxruntime",
) -> dict[str, Any]:
    """Draw the first reference prompt at batch 1 `repeats` times after a warm-up, and read times and memory.

    Milliseconds: `components` {name: {calls, median_ms, p90_ms}} per call with `calls` per image; `step` the denoiser's
    calls of one denoising step (two of them under classifier-free guidance); `image` from prompt to picture. `load_s`
    seconds until every graph that `memory` keeps is ready. Bytes: `before_load_bytes` once the libraries are imported,
    `peak_bytes` the high-water mark of the process. `over_time`: `mode`, `probe`, `peak_bytes`, and until the end of
    the first image `samples` [[s, bytes], ...] and `marks` [[s, "load text_encoder"], ...]. Call it in a fresh process.
    """
    from engines.pipeline import load

    import_libraries()
    trim()
    measured = probe(backend)
    before = measured.now()
    recorder = Recorder(measured)
    images_ms = []
    with recorder:
        start = time.perf_counter()
        pipe = load(directory, preset, threads, verify=False, backend=backend, memory=memory, watch=recorder.mark)
        load_s = time.perf_counter() - start
        timed = Timed.of(pipe.artifact)
        with pipe:
            for i in range(WARM_UP + repeats):
                if i == WARM_UP:
                    recorder.mark("image")
                    for session in pipe.sessions.values():
                        session.latencies_ms.clear()
                start = time.perf_counter()
                pipe(timed.prompt, seed=0, **timed.given)
                images_ms.append((time.perf_counter() - start) * 1e3)
            ran = {n: list(s.latencies_ms) for n, s in pipe.sessions.items() if s.latencies_ms}
    denoiser = ran[pipe.artifact.component("denoiser")[0]]
    steps = repeats * pipe.generation["num_inference_steps"]
    return {
        "load_s": load_s,
        "components": {n: {"calls": len(t) // repeats, **_spread(t)} for n, t in ran.items()},
        "step": _spread(np.reshape(denoiser, (steps, -1)).sum(axis=1)),
        "image": _spread(images_ms[WARM_UP:]),
        "before_load_bytes": before,
        "peak_bytes": recorder.peak_bytes,
        "over_time": _over_time(recorder, pipe.mode),
    }


def _over_time(recorder: Recorder, mode: str) -> dict[str, Any]:
    """Load and first image, in at most SAMPLES samples; of each span the largest is kept."""
    end = next(t for t, what in recorder.marks if what == "image")
    spans: dict[int, list[float]] = {}
    for t, held in recorder.samples:
        if t <= end:
            span = int(SAMPLES * t / end)
            spans[span] = max(spans.get(span, [0.0, 0]), [t, held], key=lambda s: s[1])
    return {
        "mode": mode,
        "probe": recorder.probe.name,
        "peak_bytes": recorder.peak_bytes,
        "samples": [spans[k] for k in sorted(spans)],
        "marks": [m for m in recorder.marks if m[0] <= end],
    }


def measure_apart(
    directory: Path | str, preset: str, repeats: int, threads: int | None, memory: str = "resident"
) -> Apart:
    """`measure` in a fresh process that imports its libraries at once and measures when `result` asks.

    Imports take longer than a small model's images, and may run beside other work; what is timed may not.
    """
    arguments = [str(directory), "--preset", preset, "--repeats", str(repeats), "--memory", memory, "--wait"]
    arguments += ["--threads", str(threads)] if threads else []
    return Apart("engines.measure", arguments, f"Measuring preset {preset!r}")


def _spread(milliseconds: Any) -> dict[str, float]:
    return {
        "median_ms": float(np.median(milliseconds)),
        "p90_ms": float(np.percentile(milliseconds, 90)),
    }


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory.")],
    preset: Annotated[str | None, typer.Option(help="Preset; the artifact's first if not given.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Images that are timed, after one that is not.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core if not given.")] = None,
    memory: Annotated[str, typer.Option(help=f"What stays in memory: {', '.join(MODES)}.")] = MODES[0],
    backend: Annotated[str, typer.Option(help="What runs the graphs: onnxruntime or tensorrt.")] = "onnxruntime",
    wait: Annotated[bool, typer.Option("--wait", help="Begin when a line comes on stdin, all imports done.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure a preset's latency and memory in this process and print them as JSON."""
    with reported(debug):
        from engines.pipeline import choose

        preset = choose(Artifact.open(out, verify=False), preset)
        if wait:
            import_libraries()
            if not sys.stdin.readline():
                return  # who wanted the figures is gone
        print(json.dumps(measure(out, preset, repeats, threads, memory, backend)))


if __name__ == "__main__":
    app()
