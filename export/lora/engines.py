"""What a LoRA means for what was made of the artifact before."""

from __future__ import annotations

from artifact.manifest import Artifact


def advice(artifact: Artifact) -> list[str]:
    return []
