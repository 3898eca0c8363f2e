"""The 16-bit pipeline in torch: what calibration looks into and what every engine is compared with."""

from __future__ import annotations

import logging
from typing import Any

import torch

from export.families import pipeline_row
from export.source import Source


def load_pipeline(source: Source) -> Any:
    """The diffusers pipeline from safetensors only, without the safety checker and without code of the model.

    On a CPU the 16-bit weights compute in float32; on a GPU in float16, or bfloat16 where the files are bfloat16.
    Raises UserError for a pipeline class that is not supported.
    """
    import diffusers

    cls = getattr(diffusers, pipeline_row(source.pipeline).cls)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extra = {} if source.index.get("safety_checker") is None else {"safety_checker": None}
    with _no_advice():
        pipe = cls.from_pretrained(
            source.root,
            dtype=torch.float32 if device == "cpu" else _stored_dtype(source),
            use_safetensors=True,
            local_files_only=True,
            variant=source.variant,
            **extra,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


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
