"""With what a preset's images are compared, and from which noise: decided, and refused, before anything runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.pictures import Pictures, read_pictures
from artifact.prompts import read_prompts
from artifact.sampling import initial_noise
from engines.families import layout
from engines.pipeline import choose
from engines.references import References

BASELINE = "fp16"


@dataclass(frozen=True)
class Comparison:
    """Both sides draw `prompts` from `noise` (float32 [P, ...]) with the keyword arguments in `generation`, and from
    `pictures` where the pipeline takes some.

    The other side is `references`, or `preset` of `artifact` where that is None. `said` names it for a reader.
    """

    said: str
    prompts: list[str]
    generation: dict[str, Any]
    noise: np.ndarray
    references: References | None = None
    artifact: Artifact | None = None
    preset: str | None = None
    pictures: Pictures | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over prompts, call, noise and pictures: equal for runs that start alike."""
        beside = [] if self.pictures is None else [self.pictures.digest]
        text = json.dumps([self.prompts, self.generation, *beside], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode() + np.ascontiguousarray(self.noise).tobytes()).hexdigest()


def choose_comparison(
    artifact: Artifact,
    preset: str,
    against: Artifact | None = None,
    against_preset: str | None = None,
    prompts: Path | None = None,
    pictures: Path | None = None,
) -> Comparison:
    """The other side for `preset` of `artifact`:

    1. nothing given: the 16-bit references stored in the artifact;
    2. `against`: the references stored there, where it has some and `against_preset` and `prompts` are None;
    3. else a preset of `against`, or of the artifact itself where `against` is None, drawn from the same noise:
       `against_preset`, or fp16. It starts from the stored references' noise, those of the artifact before those of
       `against`; with `prompts` (a text file), from seeds 0, 1, ..., and from `pictures` (a directory) where the
       pipeline takes some.

    Raises UserError where there is nothing to compare with, for an `against` made of another model, and for pictures
    that are missing or that nobody takes.
    """
    _check_pictures(artifact, prompts, pictures)
    if against is not None:
        _refuse_another_model(artifact, against)
    if against_preset is None and prompts is None:
        holder = against or artifact
        if holder.manifest.get("references"):
            return _stored(holder, own=against is None)
        if against is None:
            raise UserError(
                f"{artifact.root} holds no references to compare with: build it again with references, or name another "
                "build of the model with --against, or prompts to compare it with its own fp16 preset with --prompts."
            )
    other = against or artifact
    name = _other_preset(other, against_preset)
    if (other.root.resolve(), name) == (artifact.root.resolve(), preset):
        raise UserError(
            f"Preset {preset!r} would be compared with itself: choose another --preset, or name another build of the "
            "model with --against."
        )
    words, noise, generation, beside, start = _start(artifact, other, prompts, pictures)
    said = f"preset {name} of {other.manifest['name'] if against else 'the same artifact'}, {len(words)} {start}"
    return Comparison(said, words, generation, noise, artifact=other, preset=name, pictures=beside)


def _refuse_another_model(artifact: Artifact, against: Artifact) -> None:
    ours, theirs = (a.manifest["source"] for a in (artifact, against))
    if ours["sha256"] != theirs["sha256"]:
        raise UserError(
            f"--against {against.root} was built from another model ({theirs['model']}, SHA-256 "
            f"{theirs['sha256'][:12]}, not {ours['model']}, {ours['sha256'][:12]}): name a build of the same one."
        )


def _stored(holder: Artifact, own: bool) -> Comparison:
    """The references that `holder` keeps."""
    try:
        found = References.read(holder)
    except UserError:
        raise
    except Exception as e:  # safetensors' errors share no base class with those of json and numpy
        raise UserError(
            f"The references in {holder.root} cannot be read ({e}): copy the artifact again or rebuild it."
        ) from None
    where = "" if own else f" in {holder.manifest['name']}"
    said = f"the 16-bit references stored{where}, {len(found.prompts)} prompts"
    return Comparison(said, found.prompts, found.generation, found.noise, references=found, pictures=found.pictures)


def _other_preset(other: Artifact, wanted: str | None) -> str:
    if wanted is None and BASELINE not in other.manifest["presets"]:
        raise UserError(
            f"{other.root} holds no {BASELINE} preset to compare with: build it with one, or name another with "
            f"--against-preset ({', '.join(other.manifest['presets'])})."
        )
    return choose(other, wanted or BASELINE)


def _check_pictures(artifact: Artifact, prompts: Path | None, pictures: Path | None) -> None:
    rule, name = artifact.pictures, artifact.manifest["pipeline"]
    if pictures is not None and rule is None:
        raise UserError(f"--pictures is {pictures}, but a {name} takes no picture: leave it out.")
    if pictures is not None and prompts is None:
        raise UserError(f"--pictures {pictures} was given without --prompts, which they lie beside: give both.")
    if prompts is not None and rule is not None and pictures is None:
        raise UserError(f"A {name} draws from {rule} beside every prompt: give a directory of them with --pictures.")


def _start(
    artifact: Artifact, other: Artifact, prompts: Path | None, directory: Path | None
) -> tuple[list[str], np.ndarray, dict[str, Any], Pictures | None, str]:
    """Prompts, noise, call and pictures, and what the prompts are called."""
    if prompts is not None:
        words = read_prompts(prompts)
        generation = dict(artifact.manifest["generation"])
        rule = layout(artifact.manifest["components"]).latents
        size = generation["height"], generation["width"]
        noise = initial_noise(rule, range(len(words)), *size)
        beside = None
        if artifact.pictures is not None and directory is not None:
            beside = read_pictures(directory, artifact.pictures, len(words), *size)
        return words, noise, generation, beside, f"prompts of {prompts.name}, seeds from 0"
    holder = next((a for a in (artifact, other) if a.manifest.get("references")), None)
    if holder is None:
        raise UserError(
            f"Neither {artifact.root} nor {other.root} holds references, whose prompts both would draw: give some with "
            "--prompts."
        )
    stored = _stored(holder, own=True)
    said = "prompts of the stored references, from their noise"
    return stored.prompts, stored.noise, stored.generation, stored.pictures, said
