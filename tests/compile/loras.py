"""Random LoRAs for the bundled models, as the trainers would save them, and what they add, by plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.compile.commands import ROOT

BUNDLED = ROOT / "export" / "bundled"
Matrices = dict[str, tuple[np.ndarray, np.ndarray]]  # {"transformer.<linear>": (A, B)}, as PEFT calls them


def linears(model: str, module: str, kernel: bool = False) -> dict[str, tuple[int, ...]]:
    """{dotted name: shape of the weight} of a bundled model's linears, with `kernel` of its convolutions."""
    (file,) = (BUNDLED / model / module).glob("*.safetensors")
    axes = 4 if kernel else 2
    return {
        name.removesuffix(".weight"): array.shape
        for name, array in load_file(file).items()
        if name.endswith(".weight") and array.ndim == axes and "embed" not in name.split(".")[-2]
    }


def random(
    shapes: Mapping[str, tuple[int, ...]], module: str, rank: int = 4, seed: int = 0, size: float = 0.2
) -> Matrices:
    """A LoRA of the given linears whose product is about `size` of a weight's own size."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (n, *inner) in shapes.items():
        a = rng.standard_normal((rank, *inner)) / np.prod(inner) ** 0.5
        b = rng.standard_normal((n, rank, *(1 for _ in inner[1:]))) * size / rank**0.5
        found[f"{module}.{name}"] = a.astype(np.float32), b.astype(np.float32)
    return found


def only(matrices: Matrices, *parts: str) -> Matrices:
    """Those whose name holds one of `parts`."""
    return {name: pair for name, pair in matrices.items() if any(part in name for part in parts)}


def as_peft(path: Path, matrices: Matrices, alpha: float | None = None) -> Path:
    """Diffusers' own format, alphas beside the matrices."""
    arrays = {f"{n}.lora_A.weight": a for n, (a, _) in matrices.items()}
    arrays |= {f"{n}.lora_B.weight": b for n, (_, b) in matrices.items()}
    if alpha is not None:
        arrays |= {f"{n}.alpha": np.float32(alpha) for n in matrices}
    return saved(path, arrays)


def as_kohya(path: Path, matrices: Matrices, alpha: float | None = None) -> Path:
    """kohya's format: one word for a name, alphas always."""
    prefix = {
        "transformer": "lora_transformer", "unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te3",
    }  # fmt: skip
    arrays = {}
    for name, (a, b) in matrices.items():
        module, _, rest = name.partition(".")
        key = f"{prefix[module]}_{rest.replace('.', '_')}"
        arrays |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
        arrays[f"{key}.alpha"] = np.float32(len(a) if alpha is None else alpha)
    return saved(path, arrays)


def saved(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write a safetensors file."""
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """B·A in float64, in the shape of the weight."""
    flat = b.reshape(len(b), -1).astype(np.float64) @ a.reshape(len(a), -1).astype(np.float64)
    return flat.reshape(len(b), *a.shape[1:])


def merge(pipe: object, adapters: Iterable[tuple[Matrices, float]]) -> None:
    """W += strength · B·A in a torch pipeline, in place."""
    with torch.no_grad():
        for matrices, strength in adapters:
            for name, (a, b) in matrices.items():
                module, _, rest = name.partition(".")
                layer = getattr(pipe, module).get_submodule(rest)
                delta = torch.from_numpy(strength * product(a, b)).reshape(layer.weight.shape)
                layer.weight += delta.to(layer.weight.dtype)
