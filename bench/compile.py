"""What compiling real sizes costs: python bench/compile.py CHECKPOINT... [--plot FILE]

Builds every checkpoint (bench/checkpoint.py makes them) with `python -m export.build --data-free --references 0` into a
fresh directory and prints, per model: weights, seconds of every stage, the peak of anonymous memory over all processes
of the build (and while it exported), and the size of each form on disk beside the source's weights. Anonymous memory is
Pss_Anon of /proc: what a process has for itself, and its share of the pages that a forked worker has in common with
others. Mapped files are the system's cache and are given back when others need them. `--plot`: seconds over weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without an installation
from artifact.manifest import Artifact  # noqa: E402
from engines import machine  # noqa: E402
from engines.sizes import model_bytes  # noqa: E402
from export.source import open_source  # noqa: E402

EVERY_S = 0.5  # a look takes up to 60 ms
DATA_FREE, FLAGS = "--data-free", ("--references", "0", "--drop-fp16")
_STAGE = re.compile(r"^(\w+)\s+([\d.]+) s$")


@dataclass
class Compiled:
    """One build. Seconds, bytes; `stages` {stage: seconds}, `peaks` {stage: anonymous bytes at its peak}."""

    name: str
    weights: int = 0
    source_bytes: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)
    layers: int = 0
    mean_error: float = math.nan


def anonymous_bytes(root: int) -> int:
    """Pss_Anon of a process and of all that it started: shared pages count once."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_fields(entry / "status")["PPid"])
            except (OSError, KeyError):
                continue  # it ended while we looked
    total, pending = 0, [root]
    while pending:
        process = pending.pop()
        with contextlib.suppress(OSError, KeyError):
            total += int(_fields(Path(f"/proc/{process}/smaps_rollup"))["Pss_Anon"].split()[0]) * 1024
        pending += [p for p, parent in parents.items() if parent == process]
    return total


def _fields(file: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)


def build(checkpoint: Path, out: Path, more: list[str]) -> Compiled:
    """Compile one checkpoint and watch it. Raises RuntimeError with the build's last line where it fails."""
    found = Compiled(checkpoint.name)
    command = [sys.executable, "-m", "export.build", "--model", str(checkpoint), "--out", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "COLUMNS": "200"}
    start = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    running, said, peak = [True], [""], [0]

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if match := _STAGE.match(line.strip()):
                stage = match[1]
                found.stages[stage] = found.stages.get(stage, 0.0) + float(match[2])
                found.peaks[stage] = max(found.peaks.get(stage, 0), peak[0])
                peak[0] = 0
                print(f"  {stage} {match[2]} s, {found.peaks[stage] / 1e9:.2f} GB", file=sys.stderr, flush=True)
            elif line.strip():
                said[0] = line.strip()

    def watch() -> None:
        while running[0]:
            peak[0] = max(peak[0], anonymous_bytes(process.pid))
            time.sleep(EVERY_S)

    threads = [threading.Thread(target=f, daemon=True) for f in (read, watch)]
    for thread in threads:
        thread.start()
    code = process.wait()
    found.seconds = time.monotonic() - start
    running[0] = False
    for thread in threads:
        thread.join()
    if code:
        raise RuntimeError(f"{checkpoint}: {said[0]}")
    return found


def describe(found: Compiled, checkpoint: Path, out: Path) -> Compiled:
    """What the artifact says of its denoiser: weights, sizes of its forms, layers."""
    artifact = Artifact.open(out, verify=False)
    name, denoiser = next((n, c) for n, c in artifact.manifest["components"].items() if c["role"] == "denoiser")
    index = open_source(str(checkpoint)).weights(denoiser["module"])
    found.weights = sum(math.prod(w.shape) for w in index.values())
    found.source_bytes = sum(w.nbytes for w in index.values())
    preset = artifact.manifest["presets"][0]
    for form, models in (("portable", denoiser["models"]), ("TensorRT", denoiser["tensorrt"])):
        if preset in models:
            found.forms[form] = model_bytes(artifact.path(models[preset]))
    rows = artifact.manifest["layers"].get(preset, {}).get(name, {})
    found.layers = len(rows)
    found.mean_error = sum(r["error"] for r in rows.values()) / max(1, len(rows))
    return found


def show(rows: list[Compiled]) -> None:
    """The table."""
    stages = list(dict.fromkeys(s for r in rows for s in r.stages))
    print(f"\n{'':28}" + "".join(f"{r.name:>14}" for r in rows))

    def line(title: str, cells: list[str]) -> None:
        print(f"{title:28}" + "".join(f"{c:>14}" for c in cells))

    line("weights of the denoiser", [f"{r.weights / 1e9:.2f} G" for r in rows])
    line("4-bit layers", [str(r.layers) for r in rows])
    line("mean error of a layer", [f"{100 * r.mean_error:.1f} %" for r in rows])
    for stage in stages:
        line(f"{stage}, s", [f"{r.stages.get(stage, 0):.0f}" for r in rows])
    line("in all, s", [f"{r.seconds:.0f}" for r in rows])
    line("s per G weights", [f"{1e9 * r.seconds / r.weights:.0f}" for r in rows])
    line("peak memory, GB", [f"{max(r.peaks.values()) / 1e9:.2f}" for r in rows])
    line("peak while exporting, GB", [f"{r.peaks.get('export', 0) / 1e9:.2f}" for r in rows])
    for form in ("portable", "TensorRT"):
        line(f"{form} form / source", [f"{r.forms.get(form, 0) / r.source_bytes:.3f}" for r in rows])


def plot(rows: list[Compiled], path: Path) -> None:
    """Seconds over weights, a dot per model and the line through the origin and the largest."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    rows = sorted(rows, key=lambda r: r.weights)
    last = rows[-1]
    axes.plot([0, last.weights / 1e9], [0, last.seconds / 60], color="#c9ced6", linewidth=1)
    for r in rows:
        axes.plot(r.weights / 1e9, r.seconds / 60, "o", color="#2b5fc4")
        axes.annotate(r.name, (r.weights / 1e9, r.seconds / 60), xytext=(5, -10), textcoords="offset points")
    axes.set_xlabel("weights of the denoiser, 10⁹")
    axes.set_ylabel("minutes of the whole build")
    axes.set_xlim(0, 1.1 * last.weights / 1e9)  # room for the last name
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/compile"), help="where artifacts go, removed afterwards")
    parser.add_argument("--keep", action="store_true", help="keep the artifacts")
    parser.add_argument("--calibrated", action="store_true", help="calibrate, instead of --data-free")
    parser.add_argument("--flags", default="", help="further flags of export.build, in one string")
    parser.add_argument("--plot", type=Path, help="PNG of seconds over weights")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="what --json wrote before: for table and plot")
    args = parser.parse_args()
    if not args.checkpoints and not args.add:
        parser.error("give a checkpoint, or --add what an earlier run wrote")
    here = machine.describe()
    print(f"{here['cpu']}, {here['cores']} cores, load {here['load_1min']}, {here['date']}")
    rows = [Compiled(**row) for file in args.add for row in json.loads(file.read_text())["rows"]]
    for checkpoint in args.checkpoints:
        out = args.out / checkpoint.name
        shutil.rmtree(out, ignore_errors=True)
        flags = [*([] if args.calibrated else [DATA_FREE]), *FLAGS, *args.flags.split()]
        print(f"{checkpoint}: export.build {' '.join(flags)}", file=sys.stderr)
        rows.append(describe(build(checkpoint, out, flags), checkpoint, out))
        if not args.keep:
            shutil.rmtree(out)
    show(rows)
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        args.json.write_text(json.dumps({"machine": here, "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
