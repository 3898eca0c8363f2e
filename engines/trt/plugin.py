"""The plugin's library in an artifact: plugin/sm87/libsvdq_plugin.so, put there when engines are built.

Engines need the very library that they were built with: it is what their 4-bit layers run in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from artifact.errors import UserError
from artifact.files import sha256, written_whole
from artifact.manifest import Artifact
from engines.targets import Target
from engines.trt.versions import Version
from plugins import library
from plugins.architectures import TARGETS, for_capability
from plugins.errors import PluginError

DIRECTORY = "plugin"


def name(shell: int) -> str:
    """The library's file name, by the TensorRT major version of its shell (8 or 10)."""
    return f"lib{library.PRODUCTS[shell]}.so"


def path_in(artifact: Artifact, sm: int | str, version: Version) -> Path:
    """Where the library for that GPU and TensorRT lies, whether it is there or not."""
    return artifact.root / DIRECTORY / f"sm{sm}" / name(version.shell)


def sha256_in(artifact: Artifact, sm: int | str, version: Version) -> str | None:
    """The hash of the library for that GPU and TensorRT; None where it is not there."""
    path = path_in(artifact, sm, version)
    return sha256(path) if path.is_file() else None


def provide(
    artifact: Artifact, target: Target, version: Version, given: Path | None = None, say: Callable[[str], None] = print
) -> Path:
    """The library in the artifact for `target`: a copy of `given`, else one that is found in the cache or built.

    Where none can be built, the one that the artifact brought is kept: a device need not have compilers. Raises
    UserError where `given` does not exist, PluginError where none can be built and none was there.
    """
    assert target.sm is not None
    kept = path_in(artifact, target.sm, version)
    try:
        source = given or _built(target, version, say)
    except PluginError as e:
        if not kept.is_file():
            raise
        say(f"the plugin's library {kept} is used as it came: none can be built here ({str(e).rstrip('.')})")
        return kept
    if not source.is_file():
        raise UserError(f"There is no plugin library {source}: build one with `python -m plugins.build`.")
    if not kept.is_file() or sha256(kept) != sha256(source):
        with written_whole(kept) as partial:
            shutil.copyfile(source, partial)
            partial.chmod(0o755)
    return kept


def _built(target: Target, version: Version, say: Callable[[str], None]) -> Path:
    assert target.compute_capability is not None
    row, architecture = TARGETS[target.name], for_capability(target.compute_capability)
    return library.find_or_build(version.shell, row.machine, [architecture], say=say).path
