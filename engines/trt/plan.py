"""A built engine on disk: its name, what is known about it, and whether it may be loaded here.

    engines/<component>.<preset>.sm87.trt10.3.plan          the engine
    engines/<component>.<preset>.sm87.trt10.3.plan.json     its record, written last: without it there is no engine
    engines/<component>.<preset>.sm87.trt10.3.layers.json   what TensorRT says of its layers
    engines/<component>.<preset>.sm87.trt10.3.times.json    what trtexec timed, once `python -m engines.benchmark` ran

TensorRT's own refusals of a strange engine are late, partly crashes, and never say what to do; hence the record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from artifact.files import sha256, write_json
from artifact.manifest import Artifact
from engines.external import pieces
from engines.trt import machine, plugin, versions
from engines.trt.versions import Version

FORMAT = 1
DIRECTORY = "engines"
SUFFIX = ".plan"
_KEYS = {
    "format", "component", "preset", "sm", "tensorrt", "plugin_sha256", "plugin_in_plan", "onnx_sha256",
    "source_sha256", "profiles", "refittable", "weight_streaming", "plan_sha256", "bytes", "builder",
}  # fmt: skip
#: What the script on the device cannot tell. It builds nothing to be refitted.
_FROM_PYTHON = {"structure_sha256", "activation_bytes"}


@dataclass(frozen=True)
class Plan:
    """An engine and its record.

    `metadata`: format, component, preset, sm ("87"), tensorrt ("10.3.0"), plugin_sha256 (None without 4-bit layers),
    plugin_in_plan (the engine carries the plugin's library), onnx_sha256 of the graph and its external data,
    source_sha256 of the model compiled, profiles [{input: {"min", "opt", "max"}}], refittable, weight_streaming,
    plan_sha256, bytes, builder ("api" or "trtexec"); where Python has built it structure_sha256 of refit.py and
    activation_bytes, what TensorRT allocates beside the weights to run it (None where it did not say).
    """

    path: Path
    metadata: dict[str, Any]

    @property
    def layers(self) -> Path:
        """The file with TensorRT's layer information."""
        return self.path.with_suffix(".layers.json")

    @property
    def times(self) -> Path:
        """The file with trtexec's times of it, as --exportTimes writes it."""
        return self.path.with_suffix(".times.json")

    @property
    def is_timed(self) -> bool:
        """Whether trtexec timed this engine, and not one that was built before it."""
        return self.times.is_file() and self.times.stat().st_mtime >= sidecar(self.path).stat().st_mtime

    @property
    def activation_bytes(self) -> int:
        """What TensorRT allocates beside the weights to run it; 0 where it is not known."""
        return int(self.metadata.get("activation_bytes") or 0)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The engine's bytes for TensorRT to read: pages of the file and no copy in memory, which a Jetson shares with its
    GPU. TensorRT keeps nothing of them once it has deserialised the engine."""
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def name(component: str, preset: str, sm: int | str, version: Version) -> str:
    """The engine's file name."""
    return f"{component}.{preset}.sm{sm}.trt{version.short}{SUFFIX}"


def sidecar(path: Path) -> Path:
    """Where the record of the engine at `path` lies."""
    return path.with_name(path.name + ".json")


def write(path: Path, metadata: dict[str, Any]) -> Plan:
    """Record the engine at `path`; its size and hash are added."""
    content = {"format": FORMAT, **metadata, "plan_sha256": sha256(path), "bytes": path.stat().st_size}
    assert content.keys() - _FROM_PYTHON == _KEYS, content.keys() ^ _KEYS
    write_json(sidecar(path), content)
    return Plan(path, content)


def read(path: Path) -> Plan:
    """The engine at `path`, whole and as it was built. Raises UserError where it or its record is not."""
    again = "build the engines again with `python -m engines.build`"
    try:
        metadata = json.loads(sidecar(path).read_text(encoding="utf-8"))
        known = metadata["format"]
        size, digest = metadata["bytes"], metadata["plan_sha256"]
    except OSError:
        raise UserError(
            f"{path} has no record beside it, so its build was cut short or the copy was: {again}."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{sidecar(path)} is not the record of an engine (damaged): {again}.") from None
    if known != FORMAT or not metadata.keys() >= _KEYS:
        raise UserError(f"{sidecar(path)} has format {known!r}, this version reads {FORMAT}: {again}.")
    if not path.is_file():
        raise UserError(f"{path} is missing, only its record is there: copy it again or {again}.")
    if path.stat().st_size != size:
        raise UserError(f"{path} has {path.stat().st_size} bytes and was built with {size}: copy it again or {again}.")
    if _sha256_of(path) != digest:
        raise UserError(f"{path} is not the engine that was built (its hash differs): copy it again or {again}.")
    return Plan(path, metadata)


def check(plan: Plan, sm: int | str, tensorrt: Version | str, plugin_sha256: str | None) -> None:
    """Raises UserError where a machine of compute capability `sm` with that TensorRT and plugin must not load it.

    The whole version counts: TensorRT promises nothing across patches. `plugin_sha256` is not asked of an engine that
    needs no plugin or carries it.
    """
    built, here = plan.metadata, f"sm_{sm} with TensorRT {tensorrt}"
    where = f"sm_{built['sm']} with TensorRT {built['tensorrt']}"
    if where != here:
        raise UserError(
            f"{plan.path.name} was built for {where} and this is {here}: engines run nowhere else; "
            "build them here with `python -m engines.build`."
        )
    if built["plugin_sha256"] and not built["plugin_in_plan"] and built["plugin_sha256"] != plugin_sha256:
        found = f"has the hash {plugin_sha256[:12]}" if plugin_sha256 else "is missing"
        raise UserError(
            f"{plan.path.name} needs the plugin library that it was built with ({built['plugin_sha256'][:12]}) and the "
            f"one in {plugin.DIRECTORY}/sm{built['sm']} {found}: copy that back or build the engines again."
        )


def find(
    artifact: Artifact,
    component: str,
    preset: str,
    sm: int | None = None,
    tensorrt: Version | None = None,
) -> Plan:
    """The engine of a component for this machine, or for `sm` and `tensorrt`; checked, and ready to be loaded.

    Raises UserError where there is none, where it is for another GPU, TensorRT, plugin or artifact, or where the file
    is damaged.
    """
    sm, tensorrt = sm or machine.sm(), tensorrt or versions.installed()
    if sm is None or tensorrt is None:
        lacks = "no NVIDIA GPU" if sm is None else "no TensorRT"
        raise UserError(f"This machine has {lacks} to run engines with: use --backend onnxruntime.")
    directory = artifact.root / DIRECTORY
    path = directory / name(component, preset, sm, tensorrt)
    if not path.is_file() and not sidecar(path).is_file():
        others = sorted(p.name for p in directory.glob(f"{component}.{preset}.sm*{SUFFIX}"))
        there = f"only {' and '.join(others)}" if others else "none"
        raise UserError(
            f"{artifact.root} has no engine of {component} for {preset} on sm_{sm} with TensorRT {tensorrt.short} "
            f"({there}): run `python -m engines.build {artifact.root}` here."
        )
    plan = read(path)
    built = plan.metadata
    if (built["component"], built["preset"]) != (component, preset):
        raise UserError(f"{path} is the engine of {built['component']} for {built['preset']}, renamed: build it again.")
    check(plan, sm, tensorrt, plugin.sha256_in(artifact, sm, tensorrt))
    if built["source_sha256"] != artifact.manifest["source"]["sha256"]:
        raise UserError(
            f"{path} was built from another model than {artifact.root}: run `python -m engines.build` again."
        )
    if built["onnx_sha256"] != graph_sha256(artifact, artifact.tensorrt(component, preset)):
        raise UserError(
            f"{path} was built from another {component} graph than {artifact.root} has now: "
            "run `python -m engines.build` again."
        )
    return plan


def graph_sha256(artifact: Artifact, model: Path) -> str:
    """The hash of a graph of the artifact with its weights: of the .onnx file and of the external data that it names.

    Those data are not read: their hashes are the manifest's, which `Artifact.verify` compares with the files. Raises
    UserError for a graph that is damaged, or names data that the manifest does not know.
    """
    folder = artifact.root.resolve()
    digest = hashlib.sha256(sha256(model).encode())
    for file in sorted({piece.file for piece in pieces(model)}):
        name = file.resolve().relative_to(folder).as_posix()
        known = artifact.manifest["files"].get(name)
        if known is None:
            raise UserError(
                f"{model.name} keeps weights in {name}, which is not in the manifest of {artifact.root}: rebuild it."
            )
        digest.update(f" {file.name} {known['sha256']}".encode())
    return digest.hexdigest()


def _sha256_of(path: Path) -> str:
    """Of a file that may have gigabytes: asked again, it is read again only where it was written meanwhile."""
    found = path.stat()
    return _sha256(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, *_identity: int) -> str:
    return sha256(path)
