"""`python -m plugins.build`: the plugin library that ships with a target's engines."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from plugins import compilers, library, resources
from plugins.architectures import MACHINES, TARGETS, Architecture, find, for_capability
from plugins.device import Device
from plugins.errors import PluginError, nearest, reported
from plugins.toolchain import tensorrt_headers

EXAMPLES = """\
\b
Examples:

\b
  python -m plugins.build --target agx-orin --out out/plugin
      libsvdq_plugin.so for a Jetson AGX Orin, cross-compiled where this machine is none

\b
  python -m plugins.build --target local
      for the GPU and the driver of this machine

\b
  python -m plugins.build --target all
      for every architecture, one library for x86_64 and one for aarch64

\b
  python -m plugins.build --target agx-orin --tensorrt 8
      for TensorRT 8.5 and 8.6 (JetPack 5.1 and 6.0)
"""

ALL, LOCAL = "all", "local"
SHELLS = {"10": "10.3 and later", "8": "8.5 and 8.6"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Job:
    """One library to build, as library.find_or_build takes it, and the directory below --out."""

    machine: str
    architectures: Sequence[Architecture] | None
    driver: int | None = None
    directory: str = "."


@app.command(epilog=EXAMPLES)
def main(
    target: Annotated[str, typer.Option(help=f"{', '.join(TARGETS)}, {ALL}, or {LOCAL}: the GPU here.")] = LOCAL,
    out: Annotated[Path, typer.Option(help="Directory for the library.")] = Path("out/plugin"),
    tensorrt: Annotated[
        str, typer.Option(help="Shell: 10 (and later), 8, off, or auto: 10 where its headers can be had.")
    ] = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what the kernels take of a GPU.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compile the kernels and the TensorRT plugin for a target."""

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    with reported(debug):
        jobs = jobs_for(target)
        shell, why = shell_for(tensorrt)
        with writing(out):  # before minutes of compiling
            out.mkdir(parents=True, exist_ok=True)
        built, refused = [], []
        for job in jobs:
            try:
                found = library.find_or_build(shell, job.machine, job.architectures, job.driver, say)
            except PluginError as e:
                if target != ALL:
                    raise
                refused.append(f"left out: {job.machine}: {e}")
                continue
            built.append(found)
            show(found, delivered(found, out / job.directory), why, verbose, say)
        for line in refused:
            say(line)
        if not built:
            raise PluginError(f"Nothing could be built; {refused[0]}")


def jobs_for(target: str) -> list[Job]:
    """What a --target asks for. Raises PluginError for an unknown one, or where `local` finds no GPU."""
    if target == ALL:
        return [Job(machine, None, directory=machine) for machine in MACHINES]
    if target == LOCAL:
        try:
            device = Device()
        except PluginError as e:
            known = ", ".join((*TARGETS, ALL))
            raise PluginError(f"There is no GPU here for --target {LOCAL}: name a target ({known}).") from e
        with device:
            return [Job(platform.machine(), [for_capability(device.capability)], device.driver.version()[0])]
    if target not in TARGETS:
        raise PluginError(f"There is no target {target!r}: {nearest(target, [*TARGETS, ALL, LOCAL])}")
    row = TARGETS[target]
    return [Job(row.machine, [for_capability(row.capability)])]


def shell_for(tensorrt: str) -> tuple[int | None, str]:
    """The TensorRT major version of the shell, and why there is none. Raises PluginError for another --tensorrt."""
    if tensorrt == "off":
        return None, "--tensorrt off"
    if tensorrt in SHELLS:
        return int(tensorrt), ""
    if tensorrt != "auto":
        raise PluginError(f"There is no --tensorrt {tensorrt!r}: {nearest(tensorrt, ['auto', *SHELLS, 'off'])}")
    try:
        tensorrt_headers(10)
    except PluginError as e:
        return None, str(e)
    return 10, ""


def delivered(built: library.Library, directory: Path) -> Path:
    """A copy of the library in `directory`, whole or not at all. Raises PluginError where it cannot be written."""
    path = directory / built.path.name
    partial = directory / f"{path.name}.{os.getpid()}.partial"
    with writing(path):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(built.path, partial)
            partial.chmod(0o755)
            os.replace(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink()
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into a PluginError about `path`."""
    try:
        yield
    except OSError as e:
        raise PluginError(f"Cannot write {path} ({e.strerror}): choose another --out.") from e


def show(built: library.Library, path: Path, why: str, verbose: bool, say: library.Say) -> None:
    """What a library is made of and what it lacks."""
    kernels = ", ".join(f"sm_{name} ({compiler})" for name, compiler in built.compilers.items())
    major = built.tensorrt.split(".")[0]
    loads = SHELLS["8" if major == "8" else "10"]
    shell = f"{loads} (headers {built.tensorrt})" if built.tensorrt else f"no shell: {why}"
    say(f"\n{path}")
    say(f"  machine   {built.machine}")
    say(f"  kernels   {kernels}")
    say(f"  TensorRT  {shell}")
    say(f"  size      {built.size / 2**20:.2f} MiB")
    say(f"  sha256    {built.sha256}")
    for name, reason in built.missing.items():
        say(f"  left out  sm_{name}: {reason}")
    if verbose:
        for name in built.compilers:
            say(f"\n  {'sm_' + name:<40} registers  shared bytes  spilled bytes")
            for kernel in kernels_of(built, name):
                say(f"  {kernel.kernel:<40} {kernel.registers:9}  {kernel.shared:12}  {kernel.spilled:13}")


def kernels_of(built: library.Library, architecture: str) -> list[resources.Resources]:
    """What the compiler said of every kernel when it made the cubin, which the cache still has."""
    compiler = next(c for c in compilers.available() if str(c) == built.compilers[architecture])
    return resources.read(compilers.cubin(find(architecture), compiler).log)


if __name__ == "__main__":
    app()
