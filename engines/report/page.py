"""Writing report.json, and report.html from it: one file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import write_json, write_text
from artifact.manifest import Artifact
from artifact.pictures import MASK
from engines.evaluate import FORMAT
from engines.references import BESIDE
from engines.report import memory_plot, plots, tables, timed, where

NAME_JSON, NAME_HTML = "report.json", "report.html"
THUMBNAIL = 320  # pixels of the longer side; larger images are embedded reduced, as JPEG
JPEG_QUALITY = 90


def write_report(artifact: Artifact, results: dict[str, Any]) -> tuple[Path, Path]:
    """Write what `evaluate` returned as report.json and as report.html; their paths."""
    path = artifact.root / NAME_JSON
    write_json(path, results)
    return path, write_page(artifact, read_report(artifact))  # so that it is the page of the file, key order and all


def read_report(artifact: Artifact) -> dict[str, Any]:
    """report.json of the artifact. Raises UserError where there is none that this version understands."""
    path = artifact.root / NAME_JSON
    if not path.is_file():
        raise UserError(f"{artifact.root} holds no {NAME_JSON}: measure the artifact first.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        known = results["format"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a report (damaged or half-copied): measure the artifact again.") from None
    if known != FORMAT:
        raise UserError(f"{path} has format {known!r}, this version reads {FORMAT}: measure the artifact again.")
    return results


def write_page(artifact: Artifact, results: dict[str, Any]) -> Path:
    """Render report.html from the results and from the image files that they name."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(bytes=tables.bytes_text, ms=tables.ms_text, percent=tables.percent_text)
    names = [p["name"] for p in results["presets"]]
    score = results["reference"]["prompt_score"]
    page = environment.get_template("page.html.jinja").render(
        r=results,
        baseline=tables.baseline(results),
        measured=tables.measured(results),
        columns=tables.COLUMNS,
        overview=tables.overview(results),
        comparison=tables.comparison(results),
        headline=tables.headline(results),
        notes=tables.notes(results),
        layers={n: tables.layer_rows(results["layers"][n]) for n in names if n in results["layers"]},
        scores=[("16-bit reference", score), *((p["name"], p["prompt_score"]) for p in results["presets"])],
        score_parts=[k for k in score or {} if k not in ("right", "of")],
        memory_rows=memory_plot.rows(results),
        timed=timed.read(artifact),
        where=where.rows(results),
        where_reasons=where.reasons(results),
        pairs=_pairs(artifact, results),
        plots={name: svg and _uri("image/svg+xml", svg) for name, svg in plots.all_of(results).items()},
    )
    path = artifact.root / NAME_HTML
    write_text(path, page)
    return path


def _pairs(artifact: Artifact, results: dict[str, Any]) -> list[dict[str, Any]]:
    """For every pictured prompt: the 16-bit image and each preset's, as data URIs, with its PSNR."""
    pairs = []
    for i in results["pictured"]:
        shown = [
            {
                "preset": p["name"],
                "uri": _image_uri(artifact, p["images"][str(i)]),
                "psnr_db": p["fidelity"]["psnr_db"]["each"][i],
            }
            for p in results["presets"]
        ]
        reference = _image_uri(artifact, f"references/images/{i:04d}.png")
        pairs.append(
            {
                "prompt": results["prompts"][i],
                "seed": results["seeds"][i],
                "given": _given(artifact, i),
                "reference": reference,
                "shown": shown,
            }
        )
    return pairs


def _given(artifact: Artifact, i: int) -> list[str]:
    """The picture beside a prompt, and its mask, as data URIs; none where the pipeline takes text alone."""
    if artifact.pictures is None:
        return []
    stored = (_image_uri(artifact, f"{BESIDE}/{i:04d}{kind}.png") for kind in ("", MASK))
    return [uri for uri in stored if uri is not None]


def _image_uri(artifact: Artifact, name: str) -> str | None:
    """A stored image as a data URI; None where the file is gone, which the page says."""
    from PIL import Image

    path = artifact.path(name)
    if not path.is_file():
        return None
    with Image.open(path) as image:
        if max(image.size) <= THUMBNAIL:
            return _uri("image/png", path.read_bytes())
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return _uri("image/jpeg", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
