"""One engine to build, as both builders take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.trt.profiles import Profile
from engines.trt.timing import TimingCache
from engines.trt.versions import Version

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """`model` becomes an engine for compute capability `sm` and TensorRT `version`.

    `plugin`: library of the 4-bit layers, None where the graph has none. `plugin_in_plan`: put it into the engine,
    which also makes the engine version compatible, the only kind that carries libraries. `refit`: weights can be
    swapped later. `weight_streaming`: weights may stay in host memory at run time.
    """

    component: str
    preset: str
    model: Path
    sm: int
    version: Version
    profile: Profile
    cache: TimingCache
    plugin: Path | None = None
    plugin_in_plan: bool = False
    refit: bool = False
    weight_streaming: bool = False


@dataclass(frozen=True)
class Options:
    """What a user may ask of every engine: see Job. `images` is the most that one call draws."""

    images: int = 1
    plugin_in_plan: bool = False
    refit: bool = False
    weight_streaming: bool = False


@dataclass(frozen=True)
class Made:
    """What a builder says of the engine that it wrote: its layers as TensorRT's JSON, and the bytes that TensorRT
    allocates beside the weights to run it, at the profile's largest shapes (None: it did not say)."""

    layers: str
    activation_bytes: int | None = None
