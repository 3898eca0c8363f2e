"""build.sh: the template with a bundle's own names, numbers and trtexec flags."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.deploy.jetpack import Release
from engines.trt import profiles, trtexec
from engines.trt.job import Job
from engines.trt.profiles import Profile
from engines.trt.timing import TimingCache
from engines.trt.versions import Version

TEMPLATES = Path(__file__).parent / "templates"
# Building holds a component's weights about thrice (as read, as TensorRT's network, as the plan) beside TensorRT and
# CUDA themselves. Estimates: nothing of it was measured on a Jetson.
COPIES_IN_MEMORY, FIXED_MEMORY_MB = 3, 1536
MB = 10**6


@dataclass(frozen=True)
class Graph:
    """A component's graph as it lies in the bundle's directory `root`: `file` and `plan` relative to it.

    `sha256`: of the artifact's .onnx file. `nbytes`: of the graph with its weights.
    """

    component: str
    root: Path
    file: str
    plan: str
    sha256: str
    nbytes: int
    profile: Profile
    plugin: bool


def build_script(manifest: Mapping[str, Any], release: Release, graphs: list[Graph]) -> str:
    """The text of build.sh for a bundle's manifest. Raises UserError where trtexec of that release cannot build it."""
    values = {
        "NAME": manifest["name"],
        "PRESET": manifest["preset"],
        "JETPACK": release.name,
        "L4T": release.l4t,
        "TENSORRT": release.tensorrt,
        "CHIP": release.family(manifest["capability"]),
        "SM": manifest["sm"],
        "ARCHITECTURE": manifest["plugin"]["architecture"],
        "SHELL_VERSION": release.shell,
        "SOURCE_SHA256": manifest["source"]["sha256"],
        "USES_PLUGIN": int(any(g.plugin for g in graphs)),
        "LIBRARY": manifest["plugin"]["library"],
        "NEED_MEMORY_MB": COPIES_IN_MEMORY * max(g.nbytes for g in graphs) // MB + FIXED_MEMORY_MB,
        "NEED_DISK_MB": 2 * sum(g.nbytes for g in graphs) // MB + 256,
    }
    text = (TEMPLATES / "build.sh").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", shlex.quote(str(value)))
    return text.replace("@BUILDS@", "\n".join(_build(manifest, release, g) for g in graphs))


def _build(manifest: Mapping[str, Any], release: Release, graph: Graph) -> str:
    """The script's call that builds one component."""
    version = Version.parse(release.tensorrt)
    library = f"plugin/{manifest['plugin']['library']}" if graph.plugin else None
    cache = TimingCache.of(Path("engines"), int(manifest["sm"]), version)
    job = Job(
        graph.component,
        manifest["preset"],
        graph.root / graph.file,
        int(manifest["sm"]),
        version,
        graph.profile,
        cache,
        Path(library) if library else None,
    )
    layers = f"{Path(graph.plan).with_suffix('.layers.json')}"
    files = trtexec.Files(graph.file, f"{graph.plan}.partial", layers, str(cache.path), library)
    profile = json.dumps(profiles.to_json(graph.profile))
    first = ("build", graph.component, graph.file, graph.plan, graph.sha256, str(int(graph.plugin)), profile)
    lines = [" ".join(map(shlex.quote, first)), *map(shlex.quote, trtexec.build_arguments(job, files))]
    return " \\\n    ".join(lines)
