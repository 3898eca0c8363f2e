"""The 16-bit pipeline in torch: what calibration looks into and what every engine is compared with."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from artifact.free import available_bytes
from export.components import Component, components
from export.families import pipeline_row
from export.offload import offloaded
from export.parts import MOST_BYTES
from export.source import Source


def load_pipeline(source: Source, max_bytes: int | None = None) -> Any:
    """The diffusers pipeline from safetensors only, without the safety checker and without code of the model.

    On a CPU the 16-bit weights compute in float32; on a GPU in float16, or bfloat16 where the files are bfloat16. What
    would not fit `max_bytes` (None: 70 % of the memory that is free) stays in its files, the largest module first, and
    is read while it runs (offload.py), a quarter of `max_bytes` at a time at most. Raises UserError for a pipeline
    class that is not supported.
    """
    import diffusers

    cls = getattr(diffusers, pipeline_row(source.pipeline).cls)
    device, dtype = _arithmetic(source)
    most = _free(device) * 7 // 10 if max_bytes is None else max_bytes
    left_out = _too_large(source, dtype, most)
    part = min(MOST_BYTES, most // 4)
    extra: dict[str, Any] = {c.module: offloaded(source, c, device, dtype, part) for c in left_out}
    if source.index.get("safety_checker") is not None:
        extra["safety_checker"] = None
    with _no_advice():
        pipe = cls.from_pretrained(
            source.root,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            variant=source.variant,
            **extra,
        )
    pipe.set_progress_bar_config(disable=True)
    if not left_out:
        return pipe.to(device)
    for name, module in pipe.components.items():
        if isinstance(module, torch.nn.Module) and name not in extra:
            module.to(device)
            # diffusers asks the first module that it meets for the device, which an offloaded one does not know.
            add_hook_to_module(module, AlignDevicesHook(execution_device=device))
    return pipe


def arithmetic(source: Source) -> str:
    """What load_pipeline computes with: part of what makes its results."""
    device, dtype = _arithmetic(source)
    return f"{device} {dtype}"


def weights_in_memory(source: Source, max_bytes: int | None = None) -> int:
    """Bytes of the weights that load_pipeline would hold in memory, with the same `max_bytes`."""
    device, dtype = _arithmetic(source)
    sizes = _sizes(source, dtype)
    left_out = _too_large(source, dtype, _free(device) * 7 // 10 if max_bytes is None else max_bytes)
    return sum(sizes.values()) - sum(sizes[c.module] for c in left_out)


def _arithmetic(source: Source) -> tuple[str, torch.dtype]:
    """Device and dtype."""
    return ("cuda", _stored_dtype(source)) if torch.cuda.is_available() else ("cpu", torch.float32)


def _sizes(source: Source, dtype: torch.dtype) -> dict[str, int]:
    """{module: bytes of its weights}."""
    modules = dict.fromkeys(c.module for c in components(source))  # a VAE is two components and one module
    return {m: dtype.itemsize * sum(math.prod(w.shape) for w in source.weights(m).values()) for m in modules}


def _too_large(source: Source, dtype: torch.dtype, most: int) -> list[Component]:
    """The components to leave in their files, so that the others' weights fit `most` bytes."""
    parts = {c.module: c for c in components(source)}
    sizes = _sizes(source, dtype)
    left_out = []
    for module in sorted(sizes, key=lambda m: -sizes[m]):
        if sum(sizes.values()) <= most:
            break
        if not parts[module].role.startswith("vae"):  # called by other names than forward
            del sizes[module]
            left_out.append(parts[module])
    return left_out


def _free(device: str) -> int:
    """Bytes that a program can take on the device."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else available_bytes()


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The pipeline's transformer or UNet."""
    return pipe.transformer if getattr(pipe, "transformer", None) is not None else pipe.unet


def _stored_dtype(source: Source) -> torch.dtype:
    """bfloat16 where the denoiser's file has it (FLUX.1 was trained so), else float16."""
    module = "transformer" if "transformer" in source.modules else "unet"
    kinds = {w.dtype for w in source.weights(module).values()}
    return torch.bfloat16 if "BF16" in kinds else torch.float16


class _no_advice:
    """diffusers and transformers print progress bars and advice while loading."""

    def __enter__(self) -> None:
        import diffusers.utils.logging as d
        import transformers.utils.logging as t

        self.levels = [(d, d.get_verbosity()), (t, t.get_verbosity())]
        for library, _ in self.levels:
            library.set_verbosity(logging.ERROR)
            library.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        for library, level in self.levels:
            library.set_verbosity(level)
            library.enable_progress_bar()
