"""`python -m engines.deploy OUT --target orin-nano`: all that a Jetson needs, as a directory and as one archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifact.command import reported
from artifact.manifest import Artifact
from engines import targets

EXAMPLES = """\
Examples:

\b
  python -m engines.deploy out/shapes-dit --target orin-nano
  python -m engines.deploy out/flux --target thor-t5000 --jetpack 7.1 --preset svdq-int4 --out dist
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(epilog=EXAMPLES)
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory, as `python -m export.build` printed it.")],
    target: Annotated[str, typer.Option(help="A Jetson: " + ", ".join(t.name for t in targets.TARGETS if t.jetpacks))],
    preset: Annotated[str | None, typer.Option(help="Preset; the artifact's first if not given.")] = None,
    jetpack: Annotated[str | None, typer.Option(help="JetPack release on the device, e.g. 6.2 or 7.1.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Where to write; the artifact if not given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write the deploy bundle of a preset: models, plugin, build.sh, run.py, references."""
    with reported(debug):
        from engines.deploy.bundle import write_bundle  # after `reported` has silenced the libraries

        written = write_bundle(Artifact.open(out), targets.find(target), preset, jetpack, to)
        if not quiet:
            _show(written)


def _show(written: Path) -> None:
    import json

    manifest = json.loads((written / "manifest.json").read_text(encoding="utf-8"))
    archive = next(written.parent.glob(f"deploy-{manifest['name']}-{manifest['target']}.tar.zst"))
    for sentence in manifest["skipped"]:
        print(f"skipped: {sentence}")
    print(f"{written}: {manifest['preset']} for {manifest['target']}, JetPack {manifest['jetpack']}")
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")
    print(f"on the device: tar --zstd -xf {archive.name} && cd {archive.name.removesuffix('.tar.zst')} && ./build.sh")


if __name__ == "__main__":
    app()
