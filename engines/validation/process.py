"""Latency and memory of one preset in a process of its own: `python -m engines.validation.process JSON-of-a-Run`.

A process never gives back its peak, and what the validator itself loads must not count. Prints one JSON object; the
figures are made of it by the process that asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifact.command import reported
from artifact.errors import UserError

WARM_UP = 2  # images before any time counts: the first allocates, the second may record a CUDA graph


@dataclass(frozen=True)
class Run:
    """What to run: `prompt` from seed 0 at batch 1, at least `images` times and at most for `seconds` or so."""

    directory: str
    preset: str
    backend: str
    prompt: str
    images: int
    seconds: float
    threads: int | None = None
    memory: str | None = None
    max_memory: str | None = None


def record(run: Run, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Load, warm up, then draw until the medians are known well enough. Call it in a fresh process.

    `load_s` seconds until the pipeline is ready; `images_ms`, and `calls_ms` {component: [...]} of the timed images;
    `steps` of an image; `mode` in which the graphs shared the memory; `memory`: `probe` says how the bytes were
    measured, `before_load_bytes` once the libraries are imported, `peak_bytes` from there until the last image,
    `end_bytes` after it; `notes`: sentences on what went otherwise than asked.
    """
    import_libraries()
    from engines.memory import Recorder, probe
    from engines.pipeline import load
    from engines.validation.latency import enough
    from engines.validation.timing import repeat

    memory = probe(run.backend)
    before = memory.now()
    with contextlib.ExitStack() as stack:
        with Recorder(memory) as recorder:
            start = clock()
            pipe = stack.enter_context(
                load(
                    run.directory,
                    run.preset,
                    run.threads,
                    verify=False,
                    backend=run.backend,
                    max_memory=run.max_memory,
                    memory=run.memory,
                )
            )
            load_s = clock() - start
            for _ in range(WARM_UP):
                pipe(run.prompt, seed=0)
        for session in pipe.sessions.values():
            session.latencies_ms.clear()
        denoiser = pipe.sessions[pipe.artifact.component("denoiser")[0]].latencies_ms
        steps = pipe.generation["num_inference_steps"]
        images_ms = repeat(
            lambda: pipe(run.prompt, seed=0), run.images, run.seconds, lambda ms: enough(ms, denoiser, steps), clock
        )
        end = memory.now()
        return {
            "load_s": load_s,
            "mode": pipe.mode,
            "steps": steps,
            "images_ms": images_ms,
            "calls_ms": {n: list(s.latencies_ms) for n, s in pipe.sessions.items() if s.latencies_ms},
            "memory": {
                "probe": memory.name,
                "before_load_bytes": before,
                "peak_bytes": max(recorder.peak_bytes, end),
                "end_bytes": end,
            },
            "notes": [*pipe.notes, *(f"{n}: {p}." for n, p in pipe.placements.items() if p.fallen_back)],
        }


def import_libraries() -> None:
    """What drawing needs, so that it does not count as the engines'. Raises UserError where it is not installed."""
    try:
        import engines.modules  # noqa: F401
    except ModuleNotFoundError as e:
        raise UserError(
            f"Drawing needs the Python package {e.name}, which is not installed here: pip install svdq-edge (without "
            "extras), or run the bundle's own run.py, which does without."
        ) from None


def record_apart(run: Run) -> dict[str, Any]:
    """`record` in a fresh process. Raises UserError with that process's own sentence where it fails."""
    source = str(Path(__file__).resolve().parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.getenv("PYTHONPATH")]))}
    command = [sys.executable, "-m", "engines.validation.process", json.dumps(asdict(run))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"Measuring preset {run.preset!r} failed: {_reason(done)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process said, or which signal ended it."""
    if done.returncode == -signal.SIGKILL:
        return (
            "the system killed the process, most likely because memory ran out; close other programs or use a "
            "smaller preset or --max-memory."
        )
    if done.returncode < 0:
        return f"the process was ended by signal {-done.returncode}."
    lines = done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}."]
    return lines[-1].removeprefix("error: ")


def main() -> None:
    with reported(debug=False):
        print(json.dumps(record(Run(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
