"""What a preset takes on disk."""

from __future__ import annotations

from pathlib import Path

from artifact.manifest import Artifact
from engines.external import pieces


def preset_bytes(artifact: Artifact, preset: str) -> dict[str, int]:
    """Bytes of every component for this preset: its .onnx file and the external data that the file refers to.

    Data that several presets share in one file count for each of them, data of another preset beside it do not.
    """
    return {name: model_bytes(artifact.model(name, preset)) for name in artifact.manifest["components"]}


def model_bytes(model: Path) -> int:
    """Bytes of the .onnx file and of the distinct pieces of external data that it names."""
    return model.stat().st_size + sum(piece.nbytes for piece in pieces(model))
