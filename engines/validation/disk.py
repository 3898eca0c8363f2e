"""What a preset takes on disk, its engines included where they are what runs."""

from __future__ import annotations

from typing import Any

from artifact.manifest import Artifact
from engines.sizes import preset_bytes


def disk(artifact: Artifact, preset: str, backend: str) -> dict[str, Any]:
    """Bytes: `components` the graphs and their data, `plans` the TensorRT engines of this machine (none for
    onnxruntime), `total_bytes` both together. Raises UserError where an engine is missing."""
    components = preset_bytes(artifact, preset)
    plans: dict[str, int] = {}
    if backend == "tensorrt":
        from engines.trt.plan import find

        plans = {name: find(artifact, name, preset).path.stat().st_size for name in components}
    return {"components": components, "plans": plans, "total_bytes": sum(components.values()) + sum(plans.values())}
