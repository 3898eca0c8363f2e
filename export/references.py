"""What the 16-bit pipeline draws, stored so that a device that cannot hold it still validates against it.

Layout below the artifact: `references/prompts.json`, `references/tensors.safetensors` (noise float32 [P, ...],
latents float16 [P, steps, ...], images uint8 [P, H, W, 3]) and `references/images/0000.png` and so on; where the
pipeline draws from pictures, also `references/pictures/0000.png` and `0000.mask.png`.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

from artifact.files import write_json, written_whole
from artifact.pictures import Pictures, write_pictures
from artifact.sampling import Progress, initial_noise, sample
from artifact.store import Store, key_of
from export.batches import batch_size, batches, within
from export.components import latent_rule
from export.source import Source

PICTURES = "references/pictures"
NUMERICS = 1  # raised whenever the same inputs would give other references
MOST_PER_CALL = 25


def make_references(
    source: Source,
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    store: Store,
    progress: Progress | None = None,
    pictures: Pictures | None = None,
) -> list[str]:
    """Draw every prompt with its seed (and picture) and write the files; returns their names relative to `out`.

    Batches that `store` holds are not drawn again, and a resumed run writes the same bytes as an unbroken one.
    """
    rule, generation = latent_rule(source), source.generation
    parts: list[dict[str, np.ndarray]] = []
    for part in batches(len(prompts), batch_size(rule, generation, MOST_PER_CALL)):
        beside = None if pictures is None else pictures[part]
        key = _key(source, pipe, prompts[part], seeds[part], beside)
        stored = store.get_arrays(key)
        if stored is None:
            steps = within(progress, part, len(prompts), "drawing references")
            arrays = _draw(source, pipe, prompts[part], seeds[part], steps, beside)
            store.put_arrays(key, arrays, {})
        else:
            arrays = stored[0]
        parts.append(arrays)
        if progress:
            progress(part.stop, len(prompts), "drawing references")
    tensors = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    record = {
        "prompts": list(prompts),
        "seeds": list(seeds),
        "generation": generation,
        "latents": rule.to_json(),
    }
    return _write(out, tensors, record, pictures)


def _draw(
    source: Source,
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    progress: Progress | None,
    pictures: Pictures | None,
) -> dict[str, np.ndarray]:
    """One batch: noise, latents after every step, images."""
    generation = source.generation
    noise = initial_noise(latent_rule(source), seeds, generation["height"], generation["width"])
    drawn = sample(pipe, prompts, noise, generation, progress, pictures)
    return {"noise": noise, "latents": drawn.latents.astype(np.float16), "images": drawn.images}


def _key(source: Source, pipe: Any, prompts: Sequence[str], seeds: Sequence[int], pictures: Pictures | None) -> str:
    versions = {p: importlib.metadata.version(p) for p in ("torch", "diffusers", "transformers")}
    arithmetic = f"{'cuda' if torch.cuda.is_available() else 'cpu'} {pipe.vae.dtype}"  # others may be offloaded
    seen = () if pictures is None else (pictures.digest,)
    parts = (list(prompts), list(seeds), source.generation, versions, arithmetic, *seen)
    return key_of("references", str(NUMERICS), source.sha256, json.dumps(parts, sort_keys=True))


def _write(out: Path, tensors: dict[str, np.ndarray], record: dict[str, Any], pictures: Pictures | None) -> list[str]:
    """Every file whole, the record last."""
    names = ["references/tensors.safetensors"]
    with written_whole(out / names[0]) as partial:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial)
    for number, image in enumerate(tensors["images"]):
        names.append(f"references/images/{number:04}.png")
        with written_whole(out / names[-1]) as partial:
            Image.fromarray(image).save(partial, format="PNG")
    if pictures is not None:
        written = write_pictures(out / PICTURES, pictures)
        names += [p.relative_to(out).as_posix() for p in written]
    write_json(out / "references/prompts.json", record)
    return ["references/prompts.json", *names]
