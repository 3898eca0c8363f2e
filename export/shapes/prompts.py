"""Writes the bundled prompt lists: `python -m export.shapes.prompts export/bundled/prompts`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from . import data

BUNDLED = Path(__file__).parents[1] / "bundled" / "prompts"
CALIBRATION = 128


def write(folder: Path) -> None:
    """`heldout-500.txt`, never trained on, and `calibration.txt`, distinct captions of the training split."""
    folder.mkdir(parents=True, exist_ok=True)
    lists = {"heldout-500": data.held_out_scenes(500), "calibration": calibration_scenes()}
    for name, scenes in lists.items():
        (folder / f"{name}.txt").write_text("".join(scene.caption + "\n" for scene in scenes))


def calibration_scenes(seed: int = 128) -> list[data.Scene]:
    rng = random.Random(seed)
    chosen: dict[data.Scene, None] = {}
    while len(chosen) < CALIBRATION:
        chosen |= dict.fromkeys(data.training_scenes(rng, CALIBRATION - len(chosen)))
    return list(chosen)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
