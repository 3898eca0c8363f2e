"""Latency and memory of one preset in a process of its own: `python -m engines.validation.process JSON-of-a-Run`.

A process never gives back its peak, and what the validator itself loads must not count. Prints one JSON object; the
figures are made of it by the process that asked.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from artifact.command import reported
from engines.apart import Apart

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
    from engines.memory import Recorder, probe
    from engines.modes import import_libraries
    from engines.pipeline import load
    from engines.references import Timed
    from engines.validation.latency import enough
    from engines.validation.timing import repeat

    import_libraries()
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
            given = Timed.of(pipe.artifact).given
            for _ in range(WARM_UP):
                pipe(run.prompt, seed=0, **given)
        for session in pipe.sessions.values():
            session.latencies_ms.clear()
        denoiser = pipe.sessions[pipe.artifact.component("denoiser")[0]].latencies_ms
        steps = pipe.generation["num_inference_steps"]
        images_ms = repeat(
            lambda: pipe(run.prompt, seed=0, **given),
            run.images,
            run.seconds,
            lambda ms: enough(ms, denoiser, steps),
            clock,
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


def record_apart(run: Run) -> dict[str, Any]:
    """`record` in a fresh process. Raises UserError with that process's own sentence where it fails."""
    with Apart("engines.validation.process", [json.dumps(asdict(run))], f"Measuring preset {run.preset!r}") as apart:
        return apart.result()


def main() -> None:
    with reported(debug=False):
        print(json.dumps(record(Run(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
