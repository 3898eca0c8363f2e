"""Folding LoRAs into a built artifact, and taking them out again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifact import manifest as manifests
from artifact.errors import UserError, nearest
from artifact.lock import held
from artifact.manifest import Artifact
from artifact.store import key_of
from export.lora import state as states
from export.lora.file import LoraFile, read_file
from export.lora.fold import Applied
from export.lora.model import WEIGHT, describe
from export.lora.names import lay_over
from export.lora.write import write_graphs


def apply(root: Path, paths: Sequence[Path], strengths: Sequence[float], preset: str | None = None) -> Artifact:
    """Fold the LoRAs in `paths` into the models of `preset`, or of all presets, in place of those that are there.

    One strength for each; none means 1. Raises UserError for whatever the user can put right, and then the artifact
    is as it was.
    """
    strengths = _strengths(paths, strengths)
    files = [read_file(path) for path in paths]
    with held(root):
        artifact = Artifact.open(root)
        states.sweep(root, artifact.manifest["files"])
        base = states.without(artifact.manifest)
        presets = _presets(artifact, preset)
        model = describe(artifact, base)
        applied = [Applied(lay_over(f, model), s) for f, s in zip(files, strengths, strict=True)]
        state = _state(files, strengths, presets)
        if artifact.manifest.get(states.KEY, {}).get("state") == state:
            return artifact
        written = write_graphs(artifact, base, model, applied, presets, state)
        files_written = manifests.record(root, written.files)
        told = {"state": state, "presets": presets, "ranks": written.ranks, "adapters": [_told(a) for a in applied]}
        content = states.with_models(base, written.models, written.rows, files_written, told)
        artifact = manifests.write(root, content)
        states.sweep(root, content["files"])
        return artifact


def remove(root: Path) -> Artifact:
    """Make the artifact what it was before any LoRA, byte for byte. Raises UserError where it has none."""
    with held(root):
        artifact = Artifact.open(root)
        if states.KEY not in artifact.manifest:
            raise UserError(f"{root} has no LoRA: there is nothing to remove.")
        artifact = manifests.write(root, states.without(artifact.manifest))
        states.sweep(root, artifact.manifest["files"])
        return artifact


def _strengths(paths: Sequence[Path], strengths: Sequence[float]) -> list[float]:
    if strengths and len(strengths) != len(paths):
        raise UserError(
            f"There are {len(paths)} LoRAs and {len(strengths)} of --strength: give one for each, in their order, "
            "or none for 1.0."
        )
    for value in strengths:
        if not math.isfinite(value) or value == 0:
            raise UserError(f"--strength is {value}: give a number other than 0, or leave the LoRA out.")
    return list(strengths) or [1.0] * len(paths)


def _presets(artifact: Artifact, preset: str | None) -> list[str]:
    built: list[str] = artifact.manifest["presets"]
    if preset is None:
        return built
    if preset not in built:
        raise UserError(f"Preset {preset!r} is not in {artifact.root}: {nearest(preset, built)}")
    return [preset]


def _state(files: Sequence[LoraFile], strengths: Sequence[float], presets: Sequence[str]) -> str:
    """A name of the state that no other has: graphs of two states differ in the data that they refer to."""
    parts = [f"{f.sha256} {s!r}" for f, s in zip(files, strengths, strict=True)]
    return key_of("lora 1", *parts, *presets)[:12]


def _told(applied: Applied) -> dict[str, Any]:
    """What the manifest says of one adapter."""
    file = applied.adapter.file
    return {
        "name": file.path.name,
        "sha256": file.sha256,
        "strength": applied.strength,
        "rank": max(pair.rank for pair in file.pairs),
        "layers": sorted(f"{module}.{weight.removesuffix(WEIGHT)}" for module, weight in applied.adapter.pairs),
        "unused": list(applied.adapter.unused),
    }
