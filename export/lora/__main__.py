"""`python -m export.lora OUT adapter.safetensors...`: LoRAs into a built artifact, without quantising again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.command import needed, reported
from artifact.errors import UserError
from artifact.manifest import Artifact

with needed():
    from export.lora.state import KEY

EXAMPLES = """\
Examples:

\b
  python -m export.lora out/flux style.safetensors
      one LoRA, as strong as it was trained

\b
  python -m export.lora out/flux style.safetensors figure.safetensors --strength 0.8 --strength 0.5
      two of them, in place of what was there before

\b
  python -m export.lora out/flux --remove
      the artifact as it was built, byte for byte
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(epilog=EXAMPLES)
def main(
    out: Annotated[Path, typer.Argument(help="Artifact directory, as `python -m export.build` printed it.")],
    adapters: Annotated[list[Path] | None, typer.Argument(help="LoRAs in safetensors format.")] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="How strongly, one for each LoRA in their order [default: 1.0].")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset to fold into; all of the artifact's if not given.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the LoRAs out.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Say which LoRAs are in.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Fold LoRAs into the artifact in OUT, in place of those that are there; its 4-bit weights stay as they are."""
    with reported(debug):
        asked = [name for name, given in (("LoRAs", adapters), ("--remove", remove), ("--list", show)) if given]
        if len(asked) != 1:
            raise UserError(
                f"{' and '.join(asked)} do not go together: give one of them."
                if asked
                else "There is nothing to do: give a LoRA's file, --remove or --list."
            )
        if not adapters and (strength or preset):
            raise UserError(f"--strength and --preset say how LoRAs are folded in: leave them out with {asked[0]}.")
        if show:
            print("\n".join(_lines(Artifact.open(out))))
            return
        from export.lora.apply import apply  # late: --help should not wait for torch
        from export.lora.apply import remove as take_out
        from export.lora.engines import advice

        artifact = apply(out, adapters, strength or [], preset) if adapters else take_out(out)
        print("\n".join([*_lines(artifact), *advice(artifact)]))


def _lines(artifact: Artifact) -> list[str]:
    """What is in, a line for each LoRA and each preset."""
    state: dict[str, Any] | None = artifact.manifest.get(KEY)
    if state is None:
        return [f"{artifact.root} has no LoRA"]
    found = []
    for adapter in state["adapters"]:
        unused = f", {len(adapter['unused'])} more that no graph reads" if adapter["unused"] else ""
        found.append(
            f"{adapter['name']}  {adapter['sha256'][:12]}  strength {adapter['strength']:g}  rank {adapter['rank']}  "
            f"{len(adapter['layers'])} layers{unused}"
        )
    for preset in state["presets"]:
        grown = state["ranks"].get(preset)
        if not grown:
            found.append(f"{preset}: merged into 16-bit weights")
            continue
        for component, layers in grown.items():
            more = sorted({after - before for before, after in layers.values()})
            by = f"{more[0]}" if len(more) == 1 else f"{more[0]} to {more[-1]}"
            found.append(f"{preset}: the rank of {len(layers)} 4-bit layers of {component} grows by {by}")
    return found


if __name__ == "__main__":
    app()
