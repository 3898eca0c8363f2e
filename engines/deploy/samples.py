"""The 16-bit references that a bundle brings: few enough to copy, enough to judge by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from artifact.errors import UserError
from artifact.files import write_json, written_whole
from artifact.manifest import Artifact
from engines.references import References

MOST = 16  # prompts


def write_references(
    root: Path, artifact: Artifact, generation: dict[str, Any]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Write references/prompts.json, latents.npy (float16 [P, steps, ...]) and images/; for the manifest, and why not.

    They are left out where the artifact has none or drew them otherwise than the bundle will. The noise is not stored:
    it follows from the seeds.
    """
    try:
        references = References.read(artifact)
    except UserError:
        return None, [
            "References: the artifact was built without them, so run.py --validate has nothing to compare with."
        ]
    same = ("height", "width", "num_inference_steps")
    if any(references.generation[k] != generation[k] for k in same):
        drawn, wanted = ([str(g[k]) for k in same] for g in (references.generation, generation))
        return None, [
            f"References: they are {' x '.join(drawn[:2])} pixels in {drawn[2]} steps and the bundle draws "
            f"{' x '.join(wanted[:2])} in {wanted[2]}."
        ]
    count = min(MOST, len(references.prompts))
    folder = root / "references"
    for i in range(count):
        with written_whole(folder / "images" / f"{i:04}.png") as partial:
            Image.fromarray(references.images[i]).save(partial, format="PNG")
    with written_whole(folder / "latents.npy") as partial, open(partial, "wb") as out:
        np.save(out, references.latents[:count])
    prompts = {"prompts": references.prompts[:count], "seeds": references.seeds[:count], "generation": generation}
    write_json(folder / "prompts.json", prompts)
    return {"prompts": count}, []
