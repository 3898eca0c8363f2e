"""The prompts that come with the project: which file a model is calibrated and compared on."""

from __future__ import annotations

from pathlib import Path

from artifact.prompts import read_prompts
from export.source import BUNDLED, Source

__all__ = ["default_prompts", "read_prompts", "reference_prompts"]
PLAIN = Path(__file__).parent / "prompts" / "default.txt"  # captions of everyday scenes, written for this project


def default_prompts(source: Source) -> Path:
    """The file to calibrate on: captions of its training split for a bundled model, PLAIN for any other."""
    return _bundled(source, "calibration.txt")


def reference_prompts(source: Source) -> Path:
    """The file to compare images on: captions that a bundled model was not trained on, PLAIN for any other."""
    return _bundled(source, "heldout-500.txt")


def _bundled(source: Source, name: str) -> Path:
    file = BUNDLED / "prompts" / name
    return file if source.root.parent == BUNDLED and file.is_file() else PLAIN
