"""The catalogue: which classes of modules and pipelines are known."""

from __future__ import annotations

from artifact.errors import UserError, nearest
from export.families import autoencoder_kl, clip, flux, t5, unet
from export.families.row import PipelineRow, Row

ROWS: tuple[Row, ...] = (*flux.ROWS, *unet.ROWS, *clip.ROWS, *t5.ROWS, *autoencoder_kl.ROWS)
MODULES: dict[str, tuple[Row, ...]] = {r.cls: tuple(x for x in ROWS if x.cls == r.cls) for r in ROWS}
PIPELINES: dict[str, PipelineRow] = {p.cls: p for p in (*flux.PIPELINES, *unet.PIPELINES)}


def pipeline_row(cls: str) -> PipelineRow:
    """The row of a pipeline class. Raises UserError naming the classes that are known."""
    if cls not in PIPELINES:
        raise UserError(f"The pipeline class {cls} is not supported; {nearest(cls, sorted(PIPELINES))}")
    return PIPELINES[cls]
