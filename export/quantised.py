"""Models that another tool has quantised already: refused, because 4 bits are made from the 16-bit weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from export.safetensors_index import Weight

FLOATS = ("F64", "F32", "F16", "BF16")

# How the names of tensors end that a tool writes beside, or instead of, a weight.
_MARKS = {
    ".wscales": "nunchaku", ".smooth_factor": "nunchaku", ".wtscale": "nunchaku",
    ".absmax": "bitsandbytes", ".quant_map": "bitsandbytes", ".bitsandbytes__nf4": "bitsandbytes",
    ".bitsandbytes__fp4": "bitsandbytes", ".SCB": "bitsandbytes",
    ".qzeros": "GPTQ or AWQ", ".g_idx": "GPTQ",
    ".weight_scale": "FP8 or ModelOpt", ".weight_scale_inv": "FP8", ".scale_weight": "FP8", "scaled_fp8": "FP8",
    ".weight_scale_2": "ModelOpt",
}  # fmt: skip


def refuse_quantised(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Weight]) -> None:
    """Raises UserError where a module's config or tensors say that its weights are quantised, naming what says so."""
    quantisation = config.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        named = f"quantization_config of {method}" if method else "quantization_config"
        raise quantised(folder / "config.json", named)
    found = mark(weights.values())
    if found is not None:
        weight, said = found
        raise quantised(weight.file, said)


def mark(weights: Iterable[Weight]) -> tuple[Weight, str] | None:
    """The tensor that shows that a file is quantised, with a clause on it, or None.

    A tool's own tensors come before weights that are no floats, because they say which tool it was.
    """
    weights = list(weights)
    for weight in weights:
        for ending, tool in _MARKS.items():
            if weight.name.endswith(ending):
                return weight, f"it holds {weight.name!r}, as {tool} writes it"
    for weight in weights:
        if weight.name.endswith((".weight", ".qweight")) and weight.dtype not in FLOATS:
            return weight, f"{weight.name!r} is {weight.dtype}, where 16 or 32 bits of float are expected"
    return None


def quantised(file: Path, why: str) -> UserError:
    """The sentence."""
    return UserError(f"{file} was quantised already ({why}): give the 16-bit model that it was made from.")
