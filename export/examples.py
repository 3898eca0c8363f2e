"""What the 16-bit pipeline draws for a build: prompts and, where the pipeline takes them, a picture beside each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from artifact.errors import UserError
from artifact.pictures import PictureRule, Pictures, read_pictures
from export.components import picture_rule
from export.options import Options
from export.prompt_files import default_prompts, read_prompts, reference_prompts
from export.source import Source


@dataclass(frozen=True)
class Examples:
    """`prompts` and `pictures`, one for each; None where the pipeline takes none or nothing is drawn of these."""

    prompts: list[str]
    pictures: Pictures | None = None


def read_examples(options: Options, source: Source) -> tuple[Examples, Examples]:
    """Those of the calibration and those of the references, read in full.

    Raises UserError for files that cannot be read, where pictures are needed and not given, and where they are given
    and not needed.
    """
    rule = picture_rule(source)
    _refuse(options, source, rule)
    calibration = read_prompts(options.prompts or default_prompts(source))[: options.calibration]
    references = read_prompts(options.reference_prompts or reference_prompts(source))[: options.references]
    return (
        Examples(calibration, _beside(rule, options.pictures, len(calibration), source)),
        Examples(references, _beside(rule, options.reference_pictures or options.pictures, len(references), source)),
    )


def _beside(rule: PictureRule | None, directory: Path | None, count: int, source: Source) -> Pictures | None:
    if rule is None or directory is None or not count:
        return None
    return read_pictures(directory, rule, count, source.generation["height"], source.generation["width"])


def _refuse(options: Options, source: Source, rule: PictureRule | None) -> None:
    """Raises UserError where the pictures that were given are not those that are needed."""
    if rule is None:
        for flag, given in (("--pictures", options.pictures), ("--reference-pictures", options.reference_pictures)):
            if given is not None:
                raise UserError(f"{flag} is {given}, but a {source.pipeline} takes no picture: leave it out.")
        return
    if options.calibrates and options.pictures is None:
        raise UserError(
            f"A {source.pipeline} draws from {rule} beside every prompt and there are none to calibrate on: give a "
            "directory of them with --pictures, or build from the weights alone with --data-free --references 0."
        )
    if options.references and options.reference_pictures is None and options.pictures is None:
        raise UserError(
            f"A {source.pipeline} draws from {rule} beside every prompt and there are none to draw references from: "
            "give a directory of them with --reference-pictures, or measure nothing with --references 0."
        )
