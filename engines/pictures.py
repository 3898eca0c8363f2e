"""The image and mask of a call, for pipelines that always draw from them: checked, and cut to the image's size."""

from __future__ import annotations

from typing import Any

from artifact.errors import UserError
from artifact.manifest import Artifact
from artifact.pictures import Pictures, same_pictures


def check_given(artifact: Artifact, image: Any, mask: Any, strength: float | None) -> None:
    """Raises UserError where these are not what the artifact's pipeline takes; `image` and `mask` are PIL or None."""
    rule, name = artifact.pictures, artifact.manifest["pipeline"]
    if rule is None:
        if mask is not None and image is None:
            raise UserError("A mask was given without an image: give the image that it is to change.")
        return
    if image is None:
        raise UserError(f"No image was given, and a {name} draws from {rule} beside the prompt: give them.")
    if mask is not None and rule.mask is None:
        raise UserError(f"A mask was given, but a {name} takes none: leave it out.")
    if strength is not None:
        raise UserError(f"strength is {strength}, but a {name} always starts from noise alone: leave it out.")
    beside_prompts(artifact, image, mask, 1, 8, 8)


def beside_prompts(artifact: Artifact, image: Any, mask: Any, count: int, height: int, width: int) -> Pictures | None:
    """The call's image beside each of its `count` prompts; None where the pipeline takes text alone.

    Raises UserError as `artifact.pictures.same_pictures` does.
    """
    rule = artifact.pictures
    return None if rule is None else same_pictures(rule, image, mask, count, height, width)
