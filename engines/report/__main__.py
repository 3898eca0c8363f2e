"""Render report.html again from report.json: `python -m engines.report OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifact.command import reported
from artifact.manifest import Artifact
from engines.report import read_report, show, write_page

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory that was measured.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Render OUT/report.html again from OUT/report.json, and print its overview."""
    with reported(debug):
        artifact = Artifact.open(out, verify=False)
        results = read_report(artifact)
        path = write_page(artifact, results)
        if not quiet:
            show(results)
            print(path)


if __name__ == "__main__":
    app()
