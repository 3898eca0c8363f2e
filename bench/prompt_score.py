"""How many held-out prompts a bundled model draws right, judged by geometry: `python bench/prompt_score.py shapes-dit`.

Runs the fp16 checkpoint as a torch pipeline, on the CPU in float32 unless --dtype says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs without an installation
from engines import checker  # noqa: E402
from export.shapes.data import UNSEEN_PAIRS  # noqa: E402

BUNDLED = ROOT / "export" / "bundled"
BATCH = 25


def generate(folder: Path, captions: list[str], dtype: torch.dtype, seed: int, **changes: object) -> np.ndarray:
    """uint8 [N, 64, 64, 3], with the model's own sampling defaults from generation.json unless changed."""
    pipeline = DiffusionPipeline.from_pretrained(folder).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    settings = json.loads((folder / "generation.json").read_text()) | changes
    pictures = []
    for at in range(0, len(captions), BATCH):
        prompts = captions[at : at + BATCH]
        batch = settings | {"negative_prompt": [""] * len(prompts)} if "negative_prompt" in settings else settings
        noise = torch.Generator().manual_seed(seed + at)
        pictures.append(pipeline(prompts, generator=noise, output_type="np", **batch).images)
    return (np.concatenate(pictures) * 255).round().astype(np.uint8)


def has_unseen_pair(caption: str) -> bool:
    return any((i.colour, i.shape) in UNSEEN_PAIRS for i in checker.parse_caption(caption).items)


def table(pictures: np.ndarray, captions: list[str]) -> str:
    """Percentages of all prompts and of each kind."""
    two = [checker.parse_caption(c).relation is not None for c in captions]
    unseen = [has_unseen_pair(c) for c in captions]
    rows = {
        "all": [True] * len(captions),
        "one object": [not t for t in two],
        "two objects": two,
        "seen pairs": [not u for u in unseen],
        "unseen pairs": unseen,
    }
    columns = ("right", *(f.name for f in fields(checker.Verdict)))
    lines = [f"{'prompts':14}{'n':>5}" + "".join(f"{c:>12}" for c in columns)]
    for name, chosen in rows.items():
        kept = [i for i, keep in enumerate(chosen) if keep]
        if kept:
            shares = checker.score(pictures[kept], [captions[i] for i in kept])
            lines.append(f"{name:14}{len(kept):5}" + "".join(f"{100 * shares[c]:11.1f}%" for c in columns))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="shapes-dit, shapes-unet, or a directory")
    parser.add_argument("--prompts", type=int, default=500, help="how many of the held-out prompts")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the model's own number")
    parser.add_argument("--save", type=Path, help="store the pictures as .npy")
    args = parser.parse_args()
    bundled = BUNDLED / args.model
    folder = bundled if bundled.exists() else Path(args.model)
    captions = (BUNDLED / "prompts" / "heldout-500.txt").read_text().splitlines()[: args.prompts]
    changes = {"num_inference_steps": args.steps} if args.steps else {}
    start = time.perf_counter()
    pictures = generate(folder, captions, getattr(torch, args.dtype), args.seed, **changes)
    print(f"{args.model}: {len(captions)} pictures in {time.perf_counter() - start:.0f} s, {args.dtype}")
    if args.save:
        np.save(args.save, pictures)
    print(table(pictures, captions))


if __name__ == "__main__":
    main()
