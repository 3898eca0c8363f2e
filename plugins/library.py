"""The shared libraries, found in the cache or built there by CMake (CMakeLists.txt) around kernels compiled here.

libsvdq_linear.so        the kernels behind the C interface of svdq_linear/launch.h
libsvdq_plugin.so        the same with a shell for TensorRT 10.3 and later (IPluginV3)
libsvdq_plugin_trt8.so   the same with a shell for TensorRT 8.5 and 8.6 (IPluginV2DynamicExt)
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plugins import cache, compilers
from plugins.architectures import Architecture, of_machine
from plugins.compilers import Compiler
from plugins.errors import PluginError
from plugins.fatbin import pack
from plugins.toolchain import Headers, Tools, cmake, tensorrt_headers, tools_for, version_of

SOURCES = Path(__file__).parent

#: CMake target by the TensorRT major version of its shell; None: no shell.
PRODUCTS = {None: "svdq_linear", 10: "svdq_plugin", 8: "svdq_plugin_trt8"}
PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE = "SvdqLinear", "1", ""


@dataclass(frozen=True)
class Library:
    """A built library and what it is made of.

    `compilers`: which compiler made each architecture's kernels, by architecture name. `missing`: why the other
    architectures asked for are not in it. `tensorrt`: version of the headers of its shell, "" without one.
    """

    path: Path
    machine: str
    compilers: dict[str, str]
    missing: dict[str, str]
    tensorrt: str
    size: int
    sha256: str

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(self.compilers)


Say = Callable[[str], None]


def _unsaid(text: str) -> None:
    """Where nobody listens."""


def find_or_build(
    tensorrt: int | None = None,
    machine: str | None = None,
    architectures: Sequence[Architecture] | None = None,
    driver: int | None = None,
    say: Say = _unsaid,
    sources: Path = SOURCES,
) -> Library:
    """The library for `machine` (this one by default) with kernels for `architectures`.

    `tensorrt` 10 or 8 adds that shell. `architectures` None takes all of the machine's that the compilers here can
    make, and none at all, (), gives a library without kernels, for stand-ins of the driver. `driver` is the CUDA major
    version of the only driver that it must load into, where that is known. `say` hears of each slow step.

    Raises PluginError where an architecture that was named cannot be compiled, TensorRT's headers or CMake or the C++
    compiler are missing, or the build fails.
    """
    machine = machine or platform.machine()
    of_machine(machine)
    chosen, missing = _compilers(machine, architectures, driver)
    tools = tools_for(machine)
    headers = tensorrt_headers(tensorrt) if tensorrt else None
    name = f"lib{PRODUCTS[tensorrt]}.so"

    parts = [name, machine, *tools.identity, _source_key(sources), headers.key() if headers else ""]
    parts += [compilers.cubin_key(a, c, _kernels(sources)) for a, c in chosen]
    parts += [version_of([str(compilers.fatbinary()), "--version"]) if compilers.fatbinary() else "unpacked"]

    def make(directory: Path) -> None:
        cubins = {}
        for architecture, compiler in chosen:
            say(f"kernels for {architecture.flag} by {compiler}")
            cubins[architecture.name] = compilers.cubin(architecture, compiler, _kernels(sources)).cubin
        say(f"{name} for {machine}")
        image = directory / "kernels.fatbin"
        image.write_bytes(pack(cubins))
        _cmake(tools, sources, directory, image, tensorrt, headers)
        image.unlink()
        built = directory / name
        about = Library(
            Path(name),
            machine,
            {a.name: str(c) for a, c in chosen},
            {},
            headers.version if headers else "",
            built.stat().st_size,
            hashlib.sha256(built.read_bytes()).hexdigest(),
        )
        text = json.dumps({**asdict(about), "path": name}, indent=1)
        (directory / "library.json").write_text(text + "\n", encoding="utf-8")

    made = cache.entry(cache.key_of("library", *parts), make)
    about = json.loads((made / "library.json").read_text(encoding="utf-8"))
    return Library(**{**about, "path": made / name, "missing": missing})


def load_into_tensorrt(trt: Any, path: Path) -> None:
    """Make TensorRT know the plugin: `trt` is the tensorrt module (or a lean one), or a plugin registry of it.

    Does nothing where the registry has the plugin already. Raises PluginError where TensorRT refuses the library.
    """
    registry = trt.get_plugin_registry() if hasattr(trt, "get_plugin_registry") else trt
    if _registered(registry):
        return
    if not path.is_file():
        raise PluginError(f"There is no plugin library {path}: build it with `python -m plugins.build`.")
    if hasattr(registry, "load_library"):
        registry.load_library(str(path))
    else:  # TensorRT 8.5: the library registers itself
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    if not _registered(registry):
        version = getattr(trt, "__version__", "this version")
        raise PluginError(
            f"TensorRT {version} found no {PLUGIN_NAME} in {path}: use libsvdq_plugin.so with TensorRT 10.3 and later, "
            "libsvdq_plugin_trt8.so with 8.5 and 8.6, each built for this machine."
        )


def _compilers(
    machine: str, architectures: Sequence[Architecture] | None, driver: int | None
) -> tuple[list[tuple[Architecture, Compiler]], dict[str, str]]:
    """Which compiler makes which architecture, and why the others cannot be made."""
    here = compilers.available() if architectures is None or architectures else []
    chosen, missing = [], {}
    for architecture in of_machine(machine) if architectures is None else architectures:
        try:
            chosen.append((architecture, compilers.choose(architecture, here, driver)))
        except PluginError as e:
            if architectures is not None:
                raise
            missing[architecture.name] = str(e)
    if missing and not chosen:
        raise PluginError(next(iter(missing.values())))
    return chosen, missing


def _cmake(
    tools: Tools, sources: Path, directory: Path, image: Path, tensorrt: int | None, headers: Headers | None
) -> None:
    """Build the product in `directory` and leave nothing else there."""
    target, work = PRODUCTS[tensorrt], directory / "build"
    options = [*tools.options, f"-DSVDQ_FATBIN={image}", f"-DSVDQ_TENSORRT={tensorrt or 'OFF'}"]
    options += [f"-DTensorRT_ROOT={headers.directory}"] if headers else []
    log = ""
    for command in (
        [cmake(), "-S", str(sources), "-B", str(work), *options],
        [cmake(), "--build", str(work), "--target", target],
    ):
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        log += ran.stdout
        if ran.returncode:
            kept = cache.root() / f"{target}.failed.log"
            kept.write_text(log, encoding="utf-8")
            first = next(
                (line.strip() for line in log.splitlines() if "error" in line.lower()), "no error in its output"
            )
            raise PluginError(f"Building {target} failed ({first}): the whole log is {kept}.")
    shutil.copy(work / f"lib{target}.so", directory)
    shutil.rmtree(work)


def _kernels(sources: Path) -> Path:
    return sources / "svdq_linear" / "kernels" / "kernels.cu"


def _source_key(sources: Path) -> str:
    """The hash of what CMake reads; kernels are not among it, their cubins have keys of their own."""
    files = [sources / "CMakeLists.txt", *(sources / "cmake").iterdir()]
    for directory in (sources / "svdq_linear", sources / "svdq_linear" / "tensorrt"):
        files += [f for f in directory.rglob("*") if f.suffix in (".cpp", ".h", ".cuh", ".in")]
    kept = {f for f in files if f.is_file() and not {"on_cpu", "kernels"} & set(f.relative_to(sources).parts[:-1])}
    # The launcher reads the tile table and the parameters' structs of the kernels.
    kept |= {f for f in _kernels(sources).parent.iterdir() if f.suffix == ".h"}
    return cache.files_key(kept, sources)


def _registered(registry: Any) -> bool:
    get = getattr(registry, "get_creator", None) or registry.get_plugin_creator
    return get(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE) is not None
