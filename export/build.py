"""`python -m export.build`: compile a diffusers pipeline to 4-bit ONNX and report what that costs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.command import needed, reported

with needed():
    from export.options import Options, read_config
    from export.stages import Stages

EXAMPLES = """\
Examples:

  python -m export.build
      the bundled model for this machine

  python -m export.build --model shapes-unet --compare int4-rtn,svdq-w4a8
      presets side by side in one report

  python -m export.build --model path/to/pipeline --prompts prompts.txt --out out/mine
      your own model, calibrated on your own prompts

  python -m export.build --model path/to/flux-fill --prompts prompts.txt --pictures masked --out out/fill
      a model that draws from a picture and its mask (fox.png, fox.mask.png) beside every prompt

  python -m export.build --config build.yaml
      the same flags from a file; flags on the command line win
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Make the keys of --config the defaults of the other flags."""
    if path is not None:
        with reported(debug=False):
            context.default_map = {**(context.default_map or {}), **_as_text(read_config(path))}
    return path


def _as_text(config: dict[str, Any]) -> dict[str, str]:
    """YAML's values as a command line would give them, so that both are parsed and refused alike."""
    return {k: str(v) for k, v in config.items() if v is not None}


@app.command(epilog=EXAMPLES)
def main(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Bundled name, diffusers directory, or hub id.")] = Options.model,
    preset: Annotated[str, typer.Option(help="What to build; the artifact's default.")] = Options.preset,
    compare: Annotated[str, typer.Option(help="Further presets, separated by commas, reported side by side.")] = "",
    target: Annotated[str, typer.Option(help="Machine to build for.")] = Options.target,
    out: Annotated[Path | None, typer.Option(help="Artifact directory [default: out/<model>].")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the low-rank branch; 0: none [default: 32].")] = None,
    reserve_rank: Annotated[
        int, typer.Option(help="Rank kept free in the TensorRT form, for LoRAs by refit.")
    ] = Options.reserve_rank,
    group_size: Annotated[
        int | None, typer.Option(help="Channels that share a scale, 64 or 128 [default: 64].")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the graphs: float16 or float32.")] = Options.dtype,
    data_free: Annotated[bool, typer.Option("--data-free", help="Calibrate on nothing: weights alone.")] = False,
    prompts: Annotated[Path | None, typer.Option(help="Calibration prompts, one per line, UTF-8.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Directory of pictures beside them, for pipelines that draw from one.")
    ] = None,
    calibration: Annotated[int, typer.Option(help="How many calibration prompts are used.")] = Options.calibration,
    rows: Annotated[int, typer.Option(help="Calibration samples kept per layer input.")] = Options.rows,
    reference_prompts: Annotated[Path | None, typer.Option(help="Prompts that the report is measured on.")] = None,
    references: Annotated[
        int, typer.Option(help="How many of them are used; 0: measure nothing.")
    ] = Options.references,
    reference_pictures: Annotated[
        Path | None, typer.Option(help="Directory of the pictures beside those [default: that of --pictures].")
    ] = None,
    keep_fp16: Annotated[
        bool | None,
        typer.Option("--keep-fp16/--drop-fp16", help="Write the 16-bit graphs, too [default: up to 2 GiB]."),
    ] = None,
    text_encoder_bits: Annotated[
        str, typer.Option(help="4 (weights only), 16, or auto: 4 for large ones.")
    ] = Options.text_encoder_bits,
    steps: Annotated[int | None, typer.Option(help="Denoising steps [default: the model's].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise, sampling and randomised SVD.")] = Options.seed,
    jobs: Annotated[int | None, typer.Option(help="Worker processes [default: one per core].")] = None,
    cache: Annotated[Path | None, typer.Option(help="Store of finished work [default: <out>/.cache].")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    cache_limit: Annotated[
        float | None, typer.Option(help="GB the store may have; what was used least recently goes [default: no limit].")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="What solves layers: local processes, or a ray cluster.")
    ] = Options.executor,
    ray_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Ray cluster [default: RAY_ADDRESS, else one that starts here].")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="What workers, or the 16-bit pipeline, may take: 8GB [default: what is free].")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of these flags.", is_eager=True, callback=_defaults)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what every stage did.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compile a diffusers pipeline to 4-bit ONNX: export, calibrate, solve, rewrite, measure, report."""
    with reported(debug, offline=False):
        asked = {f.name: context.params[f.name] for f in fields(Options)}
        asked["compare"] = tuple(p.strip() for p in compare.split(",") if p.strip())
        options = Options(**asked)
        options.check()
        if dry_run:
            from export.dry_run import dry_run as say

            say(options)
            return
        from export.compile import compile_model  # late: --help and a bad flag should not wait for torch

        artifact, results = compile_model(options, Stages(quiet, verbose))
        if not quiet:
            from engines.report.console import show

            show(results)
            print(f"\nreport  {artifact.root / 'report.html'}")
            prompt = (results["prompts"] or ["a red fox in snow"])[0]
            print(f'run     python -m engines.run {artifact.root} --prompt "{prompt}" --output image.png')


if __name__ == "__main__":
    app()
