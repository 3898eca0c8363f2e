"""The command behind a bundle's run.py. argparse, because a device has no more than it needs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import written_whole
from artifact.sampling import Progress
from engines.deploy.device.bundle import Bundle

BROKEN = 1  # exit code of --validate below --min-psnr
MISSING = {
    "tensorrt": "it comes with JetPack as python3-libnvinfer; in a virtual environment use --system-site-packages",
    "tokenizers": "pip install tokenizers",
    "PIL": "pip install pillow",
    "numpy": "pip install numpy",
}


def main(root: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the command on the bundle in `root`; returns the exit code (0, 1 budget broken, 2 could not run)."""
    options = _options(arguments)
    try:
        _require()
        bundle = Bundle.open(root, verify=not options.no_verify)
        return _validate(bundle, options) if options.validate else _draw(bundle, options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as e:
        if options.debug:
            raise
        if isinstance(code := getattr(type(e), "exit_code", None), int):
            sys.stderr.write(f"error: {e}\n")
            return code
        sys.stderr.write(f"internal error: {type(e).__name__}: {e} (run again with --debug to see where)\n")
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description="Draw with the engines that build.sh made.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to draw")
    what.add_argument("--validate", action="store_true", help="compare with the 16-bit references of the bundle")
    parser.add_argument("--output", type=Path, default=Path("image.png"), help="image file to write [image.png]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial noise, 0 or more [0]")
    parser.add_argument("--steps", type=int, help="denoising steps [the model's own]")
    parser.add_argument("--guidance", type=float, help="guidance scale [the model's own]")
    parser.add_argument("--negative-prompt", help="what to keep out of the image")
    parser.add_argument(
        "--min-psnr", type=float, help="with --validate: exit code 1 where the mean PSNR is below, in dB"
    )
    parser.add_argument("--json", action="store_true", help="with --validate: print JSON")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the bundle's files with their hashes")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _require() -> None:
    """Raises UserError naming the first package that is missing."""
    import importlib

    for name, how in MISSING.items():
        try:
            importlib.import_module(name)
        except ImportError as e:
            raise UserError(f"Python package {name} cannot be imported ({e}): {how}.") from None


@contextmanager
def _engines(bundle: Bundle) -> Iterator[tuple[Any, Any]]:
    """(opens a component's engine, memory low-water mark) on this machine's GPU."""
    import tensorrt

    from engines.deploy.device.engine import Engine, Runtime
    from engines.deploy.device.memory import LowWater

    runtime = Runtime(tensorrt)
    low = LowWater(runtime.device)

    @contextmanager
    def open_(component: str) -> Iterator[Any]:
        if bundle.manifest["components"][component]["plugin"]:
            runtime.load_plugin(bundle.plugin)
        with Engine(runtime, bundle.plan(component, runtime.sm, runtime.tensorrt), component, low.look) as engine:
            yield engine

    yield open_, low


def _draw(bundle: Bundle, options: argparse.Namespace) -> int:
    from PIL import Image

    from engines.deploy.device.drawing import Call, draw

    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}: give 0 or more.")
    kind = Image.registered_extensions().get(options.output.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"--output {options.output} has no image suffix that can be written: end it in .png or .jpg.")
    call = Call(options.steps, options.guidance, options.negative_prompt)
    start = time.perf_counter()
    with _engines(bundle) as (open_, low):
        drawn = draw(bundle, open_, [options.prompt], [options.seed], call, _progress(options.quiet))
    with written_whole(options.output) as partial:
        Image.fromarray(drawn.images[0]).save(partial, format=kind)
    if not options.quiet:
        denoiser = sum(drawn.latencies_ms[bundle.manifest["denoiser"]])
        print(
            f"{options.output}: seed {options.seed}, {time.perf_counter() - start:.2f} s with loading, denoiser "
            f"{denoiser:.0f} ms, GPU memory {low.taken()['gpu'] / 2**20:.0f} MiB"
        )
    return 0


def _validate(bundle: Bundle, options: argparse.Namespace) -> int:
    from engines.deploy.device.validate import validate

    with _engines(bundle) as (open_, low):
        found = validate(bundle, open_, _progress(options.quiet or options.json))
        found["memory_bytes"] = low.taken()
    if options.json:
        print(json.dumps(found, indent=1))
    elif not options.quiet:
        _show(found)
    mean = found["psnr_db"]["mean"]
    if options.min_psnr is not None and mean < options.min_psnr:
        sys.stderr.write(f"broken: mean PSNR {mean:.2f} dB is below --min-psnr {options.min_psnr:g}\n")
        return BROKEN
    return 0


def _show(found: dict[str, Any]) -> None:
    psnr, cosine, memory = found["psnr_db"], found["latent_cosine"], found["memory_bytes"]
    print(f"{found['prompts']} prompts against the 16-bit references, from the same noise")
    print(f"  PSNR            {psnr['mean']:.2f} dB mean, {psnr['min']:.2f} dB least")
    print(f"  latent cosine   {cosine['last']:.5f} after the last step, {cosine['min']:.5f} least of all steps")
    for name, value in found["p50_ms"].items():
        print(f"  {name:<15} {value:.1f} ms a call (p50)")
    print(f"  image           {found['image_ms']:.1f} ms (medians times calls, without loading)")
    print(f"  memory          {memory['gpu'] / 2**20:.0f} MiB (GPU), {memory['system'] / 2**20:.0f} MiB (system)")


def _progress(quiet: bool) -> Progress:
    """One line on a terminal, rewritten; nothing elsewhere."""
    shown = not quiet and sys.stderr.isatty()

    def progress(done: int, total: int, what: str) -> None:
        if shown:
            sys.stderr.write(f"\r{what} {done}/{total}\033[K" + ("\n" if done == total else ""))

    return progress
