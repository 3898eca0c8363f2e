"""The catalogue: which classes of modules and pipelines are known."""

from __future__ import annotations

from artifact.errors import UserError, nearest
from export.families import (
    autoencoder_dc,
    autoencoder_kl,
    autoencoder_kl_qwen_image,
    clip,
    flux,
    gemma2,
    pixart,
    qwen_image,
    qwen_vl,
    sana,
    sd3,
    t5,
    unet,
)
from export.families.row import PipelineRow, Row

_DENOISERS = (flux, unet, sd3, pixart, sana, qwen_image)
_ENCODERS = (clip, t5, gemma2, qwen_vl)
_AUTOENCODERS = (autoencoder_kl, autoencoder_dc, autoencoder_kl_qwen_image)
_FAMILIES = (*_DENOISERS, *_ENCODERS, *_AUTOENCODERS)

ROWS: tuple[Row, ...] = tuple(row for family in _FAMILIES for row in family.ROWS)
MODULES: dict[str, tuple[Row, ...]] = {r.cls: tuple(x for x in ROWS if x.cls == r.cls) for r in ROWS}
PIPELINES: dict[str, PipelineRow] = {p.cls: p for family in _DENOISERS for p in family.PIPELINES}

_COMPLEX = "its rotary positions are complex numbers, which ONNX does not have, and no real form of them is written yet"
REFUSED = {"ZImagePipeline": _COMPLEX, "Lumina2Pipeline": _COMPLEX}


def pipeline_row(cls: str) -> PipelineRow:
    """The row of a pipeline class. Raises UserError saying why for one of REFUSED, else naming those that are known."""
    if cls in REFUSED:
        raise UserError(
            f"The pipeline class {cls} cannot be compiled: {REFUSED[cls]}. Known are {', '.join(sorted(PIPELINES))}."
        )
    if cls not in PIPELINES:
        raise UserError(f"The pipeline class {cls} is not supported; {nearest(cls, sorted(PIPELINES))}")
    return PIPELINES[cls]
