"""README.md of a bundle: what is in it, for the one who stands before the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.deploy.script import TEMPLATES
from engines.targets import Target


def readme(manifest: Mapping[str, Any], target: Target, weights: int) -> str:
    """The template with the bundle's own facts; `weights` in bytes."""
    plugin, generation = manifest["plugin"], manifest["generation"]
    made = plugin["built"] == "here"
    values = {
        "NAME": manifest["name"],
        "PRESET": manifest["preset"],
        "DEVICE": target.title,
        "JETPACK": manifest["jetpack"],
        "TENSORRT": manifest["tensorrt"],
        "SM": manifest["sm"],
        "SIZE": f"{generation['width']} x {generation['height']}",
        "STEPS": str(generation["num_inference_steps"]),
        "WEIGHTS": f"{weights / 1e6:.0f}",
        "PLUGIN": (
            f"`plugin/{plugin['library']}` is ready for this device; its source lies beside it."
            if made
            else f"`plugin/` holds the source; `build.sh` makes `{plugin['library']}` of it with CMake and nvcc, "
            "because no cross compiler was there when the bundle was made."
        ),
        "VALIDATE": (
            f"`python3 run.py --validate` draws {manifest['references']['prompts']} prompts and compares them with "
            "what the 16-bit model drew from the same noise."
            if manifest["references"]
            else "This bundle holds no references, so `run.py --validate` is refused."
        ),
        "DENOISER": manifest["components"][manifest["denoiser"]]["plan"],
        "LIBRARY": plugin["library"],
    }
    text = (TEMPLATES / "README.md").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
