"""The catalogue: which classes of modules and pipelines are known."""

from __future__ import annotations

from artifact.errors import UserError, nearest
from export.families import autoencoder_kl, clip, flux, sd3, t5, unet
from export.families.row import PipelineRow, Row

_FAMILIES = (flux, unet, sd3, clip, t5, autoencoder_kl)

ROWS: tuple[Row, ...] = tuple(row for family in _FAMILIES for row in family.ROWS)
MODULES: dict[str, tuple[Row, ...]] = {r.cls: tuple(x for x in ROWS if x.cls == r.cls) for r in ROWS}
PIPELINES: dict[str, PipelineRow] = {p.cls: p for family in _FAMILIES for p in getattr(family, "PIPELINES", ())}


def pipeline_row(cls: str) -> PipelineRow:
    """The row of a pipeline class. Raises UserError naming the classes that are known."""
    if cls not in PIPELINES:
        raise UserError(f"The pipeline class {cls} is not supported; {nearest(cls, sorted(PIPELINES))}")
    return PIPELINES[cls]
