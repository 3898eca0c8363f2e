"""What the 16-bit pipeline draws, stored so that a device that cannot hold it still validates against it.

Layout below the artifact: `references/prompts.json`, `references/tensors.safetensors` (noise float32 [P, ...],
latents float16 [P, steps, ...], images uint8 [P, H, W, 3]) and `references/images/0000.png` and so on; where the
pipeline draws from pictures, also `references/pictures/0000.png` and `0000.mask.png`.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from artifact.files import write_json, written_whole
from artifact.pictures import Pictures, write_pictures
from artifact.sampling import Progress, initial_noise, sample
from artifact.store import Store, key_of
from export.batches import batch_size, batches, within
from export.components import latent_rule
from export.examples import Examples
from export.pipeline import arithmetic
from export.source import Source

PICTURES = "references/pictures"
NUMERICS = 1  # raised whenever the same inputs would give other references
MOST_PER_CALL = 25


@dataclass(frozen=True)
class References:
    """What was drawn, and beside what: `tensors` and `record` as the files hold them."""

    tensors: dict[str, np.ndarray]
    record: dict[str, Any]
    pictures: Pictures | None


def draw_references(
    source: Source,
    pipe: Callable[[], Any],
    prompts: Sequence[str],
    seeds: Sequence[int],
    store: Store,
    progress: Progress | None = None,
    pictures: Pictures | None = None,
) -> References:
    """Draw every prompt with its seed (and picture).

    Batches that `store` holds are not drawn again, and a resumed run gives the same bytes as an unbroken one. `pipe`
    gives the pipeline, and is asked for it only where one is drawn.
    """
    rule, generation = latent_rule(source), source.generation
    parts: list[dict[str, np.ndarray]] = []
    for part in batches(len(prompts), batch_size(rule, generation, MOST_PER_CALL)):
        beside = None if pictures is None else pictures[part]
        key = _key(source, prompts[part], seeds[part], beside)
        stored = store.get_arrays(key)
        if stored is None:
            steps = within(progress, part, len(prompts), "drawing references")
            arrays = _draw(source, pipe(), prompts[part], seeds[part], steps, beside)
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
    return References(tensors, record, pictures)


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


def kept(source: Source, examples: Examples, seeds: Sequence[int], store: Store) -> int:
    """How many of these images the store holds."""
    found = 0
    for part in batches(len(seeds), batch_size(latent_rule(source), source.generation, MOST_PER_CALL)):
        beside = None if examples.pictures is None else examples.pictures[part]
        if store.path(_key(source, examples.prompts[part], seeds[part], beside)).is_file():
            found += part.stop - part.start
    return found


def _key(source: Source, prompts: Sequence[str], seeds: Sequence[int], pictures: Pictures | None) -> str:
    versions = {p: importlib.metadata.version(p) for p in ("torch", "diffusers", "transformers")}
    seen = () if pictures is None else (pictures.digest,)
    parts = (list(prompts), list(seeds), source.generation, versions, arithmetic(source), *seen)
    return key_of("references", str(NUMERICS), source.sha256, json.dumps(parts, sort_keys=True))


def write_references(drawn: References, out: Path) -> list[str]:
    """Write every file whole, the record last; returns their names relative to `out`."""
    names = ["references/tensors.safetensors"]
    with written_whole(out / names[0]) as partial:
        save_file({k: np.ascontiguousarray(v) for k, v in drawn.tensors.items()}, partial)
    for number, image in enumerate(drawn.tensors["images"]):
        names.append(f"references/images/{number:04}.png")
        with written_whole(out / names[-1]) as partial:
            Image.fromarray(image).save(partial, format="PNG")
    if drawn.pictures is not None:
        written = write_pictures(out / PICTURES, drawn.pictures)
        names += [p.relative_to(out).as_posix() for p in written]
    write_json(out / "references/prompts.json", drawn.record)
    return ["references/prompts.json", *names]
