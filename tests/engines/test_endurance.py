"""A thousand images in one process: memory does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.tiny import Tiny

ROOT = Path(__file__).parents[2]
IMAGES, SETTLED = 1000, 200  # until then allocators and caches find their size
BOUND = 2_000_000  # bytes; it takes 2.5 kB an image over the other 800
CODE = """
import json, sys
import engines
from artifact.free import trim
from engines.memory import resident_bytes
kept, held = [], []
with engines.load(sys.argv[1], threads=1, verify=False, memory=sys.argv[2]) as pipe:
    pipe.generation.update(guidance_scale=1.0)
    for i in range(int(sys.argv[3])):
        image = pipe("a large red circle", steps=1, seed=i)
        if sys.argv[4] == "leak":
            kept.append(bytes(100_000))
        if (i + 1) % int(sys.argv[5]) == 0:
            trim()
            held.append(resident_bytes("VmRSS"))
print(json.dumps(held))
"""


def held(root: Path, mode: str, images: int, every: int, leak: bool = False) -> list[int]:
    """Resident bytes after `every` images of one step, again and again."""
    command = [sys.executable, "-c", CODE, root, mode, str(images), "leak" if leak else "no", str(every)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_thousand_images_take_no_more_memory_than_two_hundred(stable_diffusion: Tiny) -> None:
    found = held(stable_diffusion.root, "resident", IMAGES, 50)
    assert len(found) == IMAGES // 50
    assert found[-1] - found[SETTLED // 50 - 1] < BOUND


def test_a_leak_of_100_kilobytes_an_image_is_seen(stable_diffusion: Tiny) -> None:
    found = held(stable_diffusion.root, "resident", 250, 50, leak=True)
    assert found[-1] - found[SETTLED // 50 - 1] > BOUND


@pytest.mark.parametrize("mode", ["pipelined", "streaming"])
def test_graphs_that_come_and_go_leave_nothing_behind(stable_diffusion: Tiny, mode: str) -> None:
    found = held(stable_diffusion.root, mode, 30, 10)
    assert found[-1] - found[0] < BOUND
