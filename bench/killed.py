"""A full-size build killed at random moments ends in the same bytes: python bench/killed.py CHECKPOINT --like MANIFEST

Starts `python -m export.build` on the checkpoint (bench/checkpoint.py makes them), kills all of its processes with
SIGKILL after a random number of seconds, `--kills` times, starts it once more, and compares all hashes with those of
MANIFEST, the manifest.json of an undisturbed build of the same checkpoint with the same flags. Ends with 1 where one
differs. Prints what each start found finished and what the last one took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs without an installation
from bench.compile import DATA_FREE, FLAGS  # noqa: E402


def start(checkpoint: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    """The build in a session of its own, so that its workers can be killed with it."""
    command = [sys.executable, "-m", "export.build", "--model", str(checkpoint), "--out", str(out), DATA_FREE, *FLAGS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    with open(log, "ab") as f:
        return subprocess.Popen(command, stdout=f, stderr=f, env=environment, start_new_session=True)


def kill_session(process: subprocess.Popen[bytes]) -> int:
    """SIGKILL to every process of the build's session; how many there were."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == process.pid:
                    found.append(int(entry.name))
            except (OSError, ValueError):
                continue  # it ended while we looked
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return len(found)


def entries(out: Path) -> tuple[int, float]:
    """How many entries its store has, and their gigabytes."""
    files = [p for p in (out / ".cache").rglob("*") if p.is_file()]
    return len(files), sum(p.stat().st_size for p in files) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--like", type=Path, required=True, help="manifest.json of an undisturbed build")
    parser.add_argument("--out", type=Path, default=Path("out/killed"), help="where it is built, removed afterwards")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--within", type=float, default=600, help="seconds after a start within which it is killed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    log, moments = args.out.with_suffix(".log"), random.Random(args.seed)
    for _ in range(args.kills):
        process, seconds = start(args.checkpoint, args.out, log), moments.uniform(0, args.within)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            count = kill_session(process)
            print(f"killed {count} processes after {seconds:.0f} s: {entries(args.out)[0]} entries stored", flush=True)
        else:
            print(f"ended by itself within {seconds:.0f} s with {process.returncode}", flush=True)
    stored, began = entries(args.out), time.monotonic()
    if start(args.checkpoint, args.out, log).wait():
        print(log.read_text()[-2000:])
        return 2
    print(f"the last start had {stored[0]} entries, {stored[1]:.2f} GB, and took {time.monotonic() - began:.0f} s")
    wanted, found = (json.loads(p.read_text())["files"] for p in (args.like, args.out / "manifest.json"))
    differ = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    print(f"{len(found)} files, {sum(e['bytes'] for e in found.values()) / 1e9:.2f} GB: ", end="")
    print(f"other than undisturbed: {', '.join(differ)}" if differ else "byte for byte those of the undisturbed build")
    shutil.rmtree(args.out)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
