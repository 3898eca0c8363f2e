"""Which LoRAs an artifact has, in its manifest; and the manifest that it had before them.

Base files are never written to. A LoRA's graphs and the few weights that it changes lie beside them as
`<preset>.lora-<state>.onnx` and refer to the base's data for all the rest; the manifest names the one or the other.
So the one rename that replaces the manifest is the whole change, and taking a LoRA out is naming the base again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from artifact.files import PARTIAL

KEY = "lora"
_MARK = ".lora-"


def without(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as it was before any LoRA, equal to the last byte once it is written."""
    if KEY not in manifest:
        return dict(manifest)
    state = manifest[KEY]
    base = {k: v for k, v in manifest.items() if k != KEY}
    base["files"] = {n: v for n, v in manifest["files"].items() if n not in state["files"]}
    base["components"] = {
        name: {**entry, **state["base"]["components"].get(name, {})} for name, entry in manifest["components"].items()
    }
    base["layers"] = {
        preset: {
            component: _over(rows, state["base"]["layers"].get(preset, {}).get(component, {}))
            for component, rows in components.items()
        }
        for preset, components in manifest["layers"].items()
    }
    return base


def with_models(
    base: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Mapping[str, str]]],
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    files: Mapping[str, Any],
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest with a LoRA: `models` {component: {"models" | "tensorrt": {preset: path}}} and `rows`
    {preset: {component: {layer: {"rank": ..., "bytes": ...}}}} take the place of the base's, which are kept; `files`
    are new; `told` is what the manifest says of the LoRA."""
    components, layers = dict(base["components"]), dict(base["layers"])
    kept: dict[str, Any] = {"components": {}, "layers": {}}
    for name, forms in models.items():
        kept["components"][name] = {form: components[name][form] for form in forms}
        components[name] = {**components[name], **{f: {**components[name][f], **p} for f, p in forms.items()}}
    for preset, by_component in rows.items():
        kept["layers"][preset], layers[preset] = {}, dict(layers[preset])
        for component, changed in by_component.items():
            before = layers[preset][component]
            kept["layers"][preset][component] = {n: {k: before[n][k] for k in row} for n, row in changed.items()}
            layers[preset][component] = _over(before, changed)
    return {
        **base,
        "components": components,
        "layers": layers,
        "files": {**base["files"], **files},
        KEY: {**told, "base": kept, "files": sorted(files)},
    }


def _over(rows: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Rows with what `changed` has in place of their own."""
    return {name: {**row, **changed.get(name, {})} for name, row in rows.items()}


def named(base: str, state: str) -> str:
    """Name of a base graph's form with the LoRA: "…/svdq-int4.trt.onnx" → "…/svdq-int4.lora-<state>.trt.onnx"."""
    end = next(end for end in (".trt.onnx", ".onnx") if base.endswith(end))
    return f"{base.removesuffix(end)}{_MARK}{state}{end}"


def sweep(root: Path, files: Iterable[str]) -> None:
    """Delete every LoRA's file that is not among `files`: a former state's, and what a killed run left."""
    keep = set(files)
    for path in [*root.glob(f"*/*{_MARK}*"), *root.glob(f"*/.*{_MARK}*{PARTIAL}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif str(path.relative_to(root)) not in keep:
            path.unlink(missing_ok=True)
