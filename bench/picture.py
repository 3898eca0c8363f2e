"""The README's picture, 16-bit and 4-bit images side by side: `python bench/picture.py out/shapes-dit docs/pairs.png`.

The images are those of an artifact's report: row by row the 16-bit reference, svdq-int4 and, where it was built,
int4-rtn, from the same prompt and noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw

SCALE, GAP, LABEL = 2, 4, 76


def picture(artifact: Path, columns: int) -> Image.Image:
    """One row per preset, one column per prompt, enlarged without smoothing."""
    report = json.loads((artifact / "report.json").read_text(encoding="utf-8"))
    presets = {p["name"]: p for p in report["presets"]}
    chosen = report["pictured"][:columns]
    rows = {"16-bit": [f"references/images/{i:04d}.png" for i in chosen]}
    for name in ("svdq-int4", "int4-rtn"):
        if name in presets:
            rows[name] = [presets[name]["images"][str(i)] for i in chosen]
    first = Image.open(artifact / rows["16-bit"][0])
    width, height = (side * SCALE for side in first.size)
    canvas = Image.new("RGB", (LABEL + len(chosen) * (width + GAP), len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for y, (name, paths) in enumerate(rows.items()):
        draw.text((4, y * (height + GAP) + height // 2), name, fill="black")
        for x, path in enumerate(paths):
            image = Image.open(artifact / path).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(image, (LABEL + x * (width + GAP), y * (height + GAP)))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path, help="artifact directory with a report")
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--columns", type=int, default=6, help="prompts shown")
    arguments = parser.parse_args()
    picture(arguments.artifact, arguments.columns).save(arguments.output)


if __name__ == "__main__":
    main()
