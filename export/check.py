"""An exported graph against torch, at sizes that it was not exported at."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from artifact.free import available_bytes
from export.components import DTYPES, Component
from export.source import Source

LIMIT = {"float32": 1e-4, "float16": 5e-3}  # largest difference over largest value
# Where torch's own float16 arithmetic is further from float32 than that, so may the graph be: random inputs drive some
# networks to where every rounding is amplified. An export that is wrong differs by far more than a rounding.
OF_ROUNDING = 2.0
# Random inputs may also drive a module beyond float16's range, which real ones do not; then others are drawn.
DRAWS = 8


class ExportDiffers(Exception):
    """The graph computes something else than the torch module: a fault of the exporter or of a family's row."""


def checked_bytes(weights: int) -> int:
    """What comparing a graph with that many weights takes: torch's module in float32, and onnxruntime's graph."""
    return 2 * 4 * weights


def obstacle(written: bool, weights: int, max_memory: int | None = None) -> str | None:
    """Why a graph with that many weights cannot be compared here; None where it can.

    `written`: whether its 16-bit form is. The memory (onnxruntime's graph becomes float32 where the CPU has no 16-bit
    arithmetic) must be free, and within `max_memory` bytes.
    """
    if not written:
        return "its 16-bit graph is not written (--keep-fp16 writes it)"
    needed, free = checked_bytes(weights), available_bytes()
    if needed > free:
        return f"that takes {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
    if max_memory is not None and needed > max_memory:
        return f"that takes {needed / 1e9:.1f} GB of memory, --max-memory is {max_memory / 1e9:.1f} GB"
    return None


def check_against_torch(model_path: Path, source: Source, component: Component, dtype: str) -> list[dict[str, Any]]:
    """Run the graph on onnxruntime and the module, loaded by its own library in float32, on equal inputs.

    Returns one entry per shape and output: {"shapes", "output", "max_abs_error", "max_abs", "relative", "allowed"},
    relative = max_abs_error / max_abs. `allowed` is LIMIT, or OF_ROUNDING times what torch's own float16 arithmetic is
    off by, if that is more. Raises ExportDiffers naming the component and the figure where one passes it.
    """
    dtype = component.dtype(dtype)
    row = component.row
    module = _torch_module(source, component)
    call = row.call(component.config)
    session = _session(model_path)
    wanted = {i.name for i in session.get_inputs()}
    found: list[dict[str, Any]] = []
    for number, shapes in enumerate(row.check_shapes):
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(number + 1 + len(row.check_shapes) * draw)
            inputs = row.inputs(component.config, shapes, DTYPES[dtype], generator)
            expected = _run(module, call, {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()})
            actual = session.run(list(row.outputs), {k: v.numpy() for k, v in inputs.items() if k in wanted})
            differences = [_difference(have, want) for have, want in zip(actual, expected, strict=True)]
            allowed = [LIMIT[dtype]] * len(differences)
            if dtype == "float32" or all(d["relative"] <= LIMIT[dtype] for d in differences):
                break
            half = [_difference(h, want) for h, want in zip(_run(_halved(module), call, inputs), expected, strict=True)]
            if all(np.isfinite(d["relative"]) for d in half):
                allowed = [max(LIMIT[dtype], OF_ROUNDING * d["relative"]) for d in half]
                break
        sizes = {k: list(v.shape) for k, v in inputs.items()}
        for name, difference, limit in zip(row.outputs, differences, allowed, strict=True):
            if not difference["relative"] <= limit:  # NaN fails, too
                raise ExportDiffers(
                    f"{component.name}: {name} of the {dtype} graph differs from torch by {difference['relative']:.2e} "
                    f"of its largest value at {sizes} (allowed {limit:.0e})."
                )
            found.append({"shapes": sizes, "output": name, **difference, "allowed": limit})
    return found


def _run(module: torch.nn.Module, call: Any, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """The module's outputs."""
    with torch.no_grad():
        found = call(module, **inputs)
    return [o.float().numpy() for o in (found if isinstance(found, tuple) else (found,))]


def _halved(module: torch.nn.Module) -> torch.nn.Module:
    """The module as torch itself computes it in float16. A copy: weights may be more exact than that."""
    return copy.deepcopy(module).half()


def _torch_module(source: Source, component: Component) -> torch.nn.Module:
    """The module as diffusers or transformers load it, which shares no code with the export."""
    module = component.row.load(
        source.root,
        subfolder=component.module,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        variant=source.variant,
    )
    return module.eval()


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _difference(have: np.ndarray, want: np.ndarray) -> dict[str, float]:
    error = float(np.abs(have.astype(np.float64) - want).max())
    largest = float(np.abs(want).max())
    return {"max_abs_error": error, "max_abs": largest, "relative": error / max(largest, 1e-30)}
