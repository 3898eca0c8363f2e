"""An artifact's presets against its stored 16-bit references: fidelity, latency, memory, size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from artifact.files import written_whole
from artifact.manifest import Artifact
from artifact.sampling import Progress, Sampled, sample
from engines import machine, metrics
from engines.apart import Apart
from engines.cost.where import presets_of, sweep
from engines.measure import WARM_UP, measure_apart
from engines.pipeline import choose, load
from engines.references import References
from engines.sizes import preset_bytes

FORMAT = 1
PIXELS = 1 << 19  # in one call, so that a batch of large images does not fill the memory: 25 tiny ones, or a large one


def evaluate(
    artifact: Artifact,
    presets: Sequence[str] | None = None,
    batch: int = 25,
    repeats: int = 3,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run `presets` (None: all that were built) on all reference prompts; the dictionary that `report.json` holds.

    At most `batch` prompts at a time for fidelity, fewer of large images; latency and memory come from `repeats` images
    at batch 1 in a process of their own. Image files go to report/images/<preset>/ in the artifact. docs/report.md
    explains every field. Raises UserError for an unknown preset, and where the artifact holds no references.
    """
    names = [choose(artifact, p) for p in (presets or artifact.manifest["presets"])]
    references = References.read(artifact)
    environment = machine.describe()  # before our own load
    batch = max(1, min(batch, PIXELS // references.images[0, ..., 0].size))
    with ExitStack() as started:
        apart = {p: started.enter_context(measure_apart(artifact.root, p, repeats, threads)) for p in names}
        pipelined = started.enter_context(measure_apart(artifact.root, names[0], 1, threads, memory="pipelined"))
        measured: dict[str, Any] = {}
        rows = [_evaluate(artifact, p, references, batch, apart[p], threads, progress, measured) for p in names]
        if progress:
            progress(0, 1, f"{names[0]}: memory, pipelined")
        over_time = _memory_over_time(names[0], measured[names[0]], pipelined.result())
    return _about(artifact, names) | {
        "machine": environment,
        "settings": {"batch": batch, "repeats": repeats, "warm_up": WARM_UP, "threads": threads},
        "generation": references.generation,
        "prompts": references.prompts,
        "seeds": references.seeds,
        "pictured": references.pictured(),
        "reference": {"prompt_score": prompt_score(references.images, references.prompts)},
        "presets": rows,
        "memory_over_time": over_time,
        "where": sweep(artifact, presets_of(rows), threads),
    }


def describe(artifact: Artifact) -> dict[str, Any]:
    """What `evaluate` returns, of an artifact without references: sizes, layers and predictions; nothing is run."""
    names = artifact.manifest["presets"]
    unknown = dict.fromkeys(
        ("fidelity", "prompt_score", "latency", "seconds_per_image_in_batch", "memory"), None
    )  # fmt: skip
    rows = [
        {
            "name": p,
            **unknown,
            "layer_error": layer_error(layers_of(artifact, p)),
            "size": _size(artifact, p),
            "images": {},
        }
        for p in names
    ]
    return _about(artifact, names) | {
        "machine": machine.describe(),
        "settings": {"batch": 1, "repeats": 1, "warm_up": WARM_UP, "threads": None},
        "generation": artifact.manifest["generation"],
        "prompts": [],
        "seeds": [],
        "pictured": [],
        "reference": {"prompt_score": None},
        "presets": rows,
        "where": sweep(artifact, presets_of(rows)),
    }


def _about(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    """What the report repeats of the manifest."""
    manifest = artifact.manifest
    return {
        "format": FORMAT,
        "name": manifest["name"],
        "pipeline": manifest["pipeline"],
        "source": manifest["source"],
        "target": manifest["target"],
        "dtype": manifest["dtype"],
        "built_with": manifest["versions"],
        "measured_with": machine.versions(),
        "layers": {p: found for p in names if (found := layers_of(artifact, p))},
        "exports": manifest["exports"],
        "skipped": list(manifest["skipped"]),
    }


def layers_of(artifact: Artifact, preset: str) -> dict[str, Any]:
    """A preset's 4-bit layers by name, which begins with the component where several have some."""
    by_component = artifact.manifest["layers"].get(preset, {})
    return {
        name if len(by_component) == 1 else f"{component}.{name}": row
        for component, rows in by_component.items()
        for name, row in rows.items()
    }


def _size(artifact: Artifact, preset: str) -> dict[str, Any]:
    sizes = preset_bytes(artifact, preset)
    return {"components": sizes, "total_bytes": sum(sizes.values())}


def _evaluate(
    artifact: Artifact,
    preset: str,
    references: References,
    batch: int,
    apart: Apart,
    threads: int | None,
    progress: Progress | None,
    kept: dict[str, Any],
) -> dict[str, Any]:
    """One preset's entry of the report; what its process measured is kept in `kept` under its name."""
    drawn, seconds = draw(artifact, preset, references, batch, threads, progress)
    if progress:
        progress(0, 1, f"{preset}: latency and memory")
    measured = kept[preset] = apart.result()
    return {
        "name": preset,
        "fidelity": fidelity(drawn, references),
        "prompt_score": prompt_score(drawn.images, references.prompts),
        "layer_error": layer_error(layers_of(artifact, preset)),
        "latency": {k: measured[k] for k in ("load_s", "components", "step", "image")},
        "seconds_per_image_in_batch": seconds / len(references.prompts),
        "memory": {k: measured[k] for k in ("before_load_bytes", "peak_bytes")},
        "size": _size(artifact, preset),
        "images": _keep_images(artifact.root, preset, drawn.images, references.pictured()),
    }


def _memory_over_time(preset: str, resident: dict[str, Any], pipelined: dict[str, Any]) -> dict[str, Any]:
    """Memory of one preset from its load to its first image, in two modes."""
    return {
        "preset": preset,
        "before_load_bytes": resident["before_load_bytes"],
        "modes": [resident["over_time"], pipelined["over_time"]],
    }


def draw(
    artifact: Artifact, preset: str, references: References, batch: int, threads: int | None, progress: Progress | None
) -> tuple[Sampled, float]:
    """All reference prompts from the stored noise, and the seconds that took."""
    parts: list[Sampled] = []
    count = len(references.prompts)
    with load(artifact.root, preset, threads, verify=False) as pipe:
        pipeline = pipe.diffusers()
        start = time.perf_counter()
        for first in range(0, count, batch):
            part = slice(first, first + batch)
            shown = _within(progress, first, min(batch, count - first), count, f"{preset}: images")
            prompts, noise = references.prompts[part], references.noise[part]
            pictures = None if references.pictures is None else references.pictures[part]
            parts.append(sample(pipeline, prompts, noise, references.generation, shown, pictures))
        seconds = time.perf_counter() - start
    images, latents = (np.concatenate([getattr(p, k) for p in parts]) for k in ("images", "latents"))
    return Sampled(images, latents), seconds


def _within(progress: Progress | None, first: int, size: int, count: int, what: str) -> Progress | None:
    """The steps of one batch as images done of all."""
    if progress is None:
        return None
    return lambda done, steps, _: progress(first + size * done // steps, count, what)


def fidelity(drawn: Sampled, references: References) -> dict[str, Any]:
    """PSNR (dB), SSIM and per-step latent cosine of a preset's run against the references."""
    mse = metrics.mean_squared_error(drawn.images, references.images)
    psnr, ssim = metrics.psnr_db(mse), metrics.ssim(drawn.images, references.images)
    return {
        "psnr_db": {**metrics.summary(psnr), "of_mean_mse": float(metrics.psnr_db(mse.mean())), "each": psnr.tolist()},
        "ssim": {**metrics.summary(ssim), "each": ssim.tolist()},
        "latent_cosine": metrics.latent_cosine(drawn.latents, references.latents).tolist(),
    }


def prompt_score(images: np.ndarray, prompts: list[str]) -> dict[str, Any] | None:
    """Share of the images that show what their caption says (`right`) and each part of it; `of` images.

    By the geometric checker for the bundled models' captions; None where a caption is of another kind.
    """
    try:
        from engines.checker import parse_caption, score

        for prompt in prompts:
            parse_caption(prompt)
    except (ImportError, ValueError):
        return None
    return {**score(images, prompts), "of": len(prompts)}


def layer_error(layers: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Mean and largest relative output error over a preset's quantised layers; None where it has none."""
    if not layers:
        return None
    errors = [layer["error"] for layer in layers.values()]
    return {"mean": float(np.mean(errors)), "max": float(np.max(errors)), "layers": len(errors)}


def _keep_images(root: Path, preset: str, images: np.ndarray, pictured: list[int]) -> dict[str, str]:
    """Write the pictured images; their paths below the artifact by prompt index."""
    from PIL import Image

    paths = {}
    for i in pictured:
        paths[str(i)] = f"report/images/{preset}/{i:04d}.png"
        with written_whole(root / paths[str(i)]) as partial:
            Image.fromarray(images[i]).save(partial, format="PNG")
    return paths
