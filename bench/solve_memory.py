"""Memory and time of solving one layer in a process of its own, beside what the solver reckons with.

    python -m bench.solve_memory                                  # data-free and with 512 samples
    python -m bench.solve_memory --layers 3072x12288 --tokens 0

Peak anonymous memory (RssAnon: not the pages of mapped files, which the kernel can drop) of the whole process,
libraries included, read every 2 ms. The process loads the layer, hashes it, solves it with one thread and stores it,
as a build's workers do; the weight is a mapped float16 file, or with --merged three that are read and joined. Seconds
are wall clock of all that, and in brackets CPU time of the process with its start, imports included. `reckoned` is
passes.solver.memory's estimate. Weights are noise, which takes more rounds of refinement than a model's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from artifact.store import Store
from passes.solver import Job, Recipe, solve_into
from passes.solver.memory import estimated_bytes
from passes.solver.worker import ONE_THREAD, environment

LAYERS = ((3072, 3072), (3072, 12288), (12288, 3072), (15360, 3072))


def load(folder: Path, parts: int) -> tuple[np.ndarray, None, np.ndarray | None]:
    """What the files hold, as passes.weights.LayerLoader reads it."""
    found = [np.load(folder / f"{i}.npy", mmap_mode="r") for i in range(parts)]
    samples = folder / "samples.npy"
    weight = found[0] if parts == 1 else np.concatenate(found)
    return weight, None, np.load(samples) if samples.exists() else None


def write(folder: Path, channels: int, outputs: int, tokens: int, parts: int) -> None:
    random = np.random.default_rng(0)
    for i in range(parts):
        rows = outputs * (i + 1) // parts - outputs * i // parts
        weight = random.standard_normal((rows, channels), dtype=np.float32) / channels**0.5
        np.save(folder / f"{i}.npy", weight.astype(np.float16))
    if tokens:
        np.save(folder / "samples.npy", random.standard_normal((tokens, channels), dtype=np.float32).astype(np.float16))


def solve(folder: Path, parts: int, pipe: Connection) -> None:
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    solve_into([Job("layer", partial(load, folder, parts), Recipe())], Store(folder / "store"), workers=1)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    pipe.send((peak, seconds, time.process_time()))


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(f"{k}x{n}" for k, n in LAYERS), help="K_inxN_out, comma-separated")
    parser.add_argument("--tokens", default="0,512", help="samples per layer, comma-separated; 0: data-free")
    parser.add_argument("--merged", action="store_true", help="the weight is three, read and joined")
    options = parser.parse_args()
    parts = 3 if options.merged else 1
    context = multiprocessing.get_context("spawn")
    print(f"{'K_in x N_out':>14s} {'samples':>7s} {'MB':>6s} {'reckoned':>8s} {'seconds':>8s} {'(CPU)':>8s}   load")
    for shape in options.layers.split(","):
        channels, outputs = (int(part) for part in shape.split("x"))
        for tokens in (int(t) for t in options.tokens.split(",")):
            with tempfile.TemporaryDirectory() as name, environment(ONE_THREAD):
                write(Path(name), channels, outputs, tokens, parts)
                ours, theirs = context.Pipe()
                process = context.Process(target=solve, args=(Path(name), parts, theirs))
                process.start()
                peak, seconds, cpu = ours.recv()
                process.join()
            reckoned = estimated_bytes(outputs, channels, tokens, Recipe().rank)
            print(
                f"{channels:6d} x {outputs:<5d} {tokens:7d} {peak / 1e6:6.0f} {reckoned / 1e6:8.0f} "
                f"{seconds:8.2f} ({cpu:6.2f})   {os.getloadavg()[0]:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
