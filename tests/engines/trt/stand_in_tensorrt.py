"""The Python module tensorrt of a version, as far as building goes: `module("10.3.0")`.

Its classes have the members that data/python-<version>.json lists, and refuse every other, as pybind11's do: what 11
no longer has cannot be used by mistake. `fault` of the module: those of stand_in_layers.py, "parse", "build", "memory",
"load", "weights", "refit"; `cache_fault`: "none", "refused", "raises".
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

from tests.engines.trt.stand_in_layers import information

DATA = Path(__file__).parent / "data"
PHASES = (("Building engine", 3), ("Timing tactics", 5))


def module(version: str) -> Any:
    """A fresh module: nothing registered, no faults."""
    listed = json.loads((DATA / f"python-{version}.json").read_text(encoding="utf-8"))
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = f"{version}.26"
    trt.fault = trt.cache_fault = ""
    trt.registered, trt.made = [], {}
    for name in ("BuilderFlag", "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "LayerInformationFormat"):
        setattr(trt, name, enum.IntEnum(name, [(n, i) for i, n in enumerate(listed[name])]))
    for name, cls in _classes(trt, int(version.split(".")[0])).items():
        allowed = {*listed.get(name, ()), *(["log", "Severity"] if name == "ILogger" else [])}
        setattr(trt, name, _strict(name, cls, allowed))
    registry = trt.IPluginRegistry()
    trt.get_plugin_registry = lambda: registry
    return trt


def _strict(name: str, cls: type, allowed: set[str]) -> type:
    """`cls` without the public members that the version lacks; setting an unknown attribute raises AttributeError."""
    for member in [m for m in vars(cls) if not m.startswith("_") and m not in allowed]:
        delattr(cls, member)

    def setattr_(self: Any, key: str, value: Any) -> None:
        if not key.startswith("_") and key not in allowed and type(self) is cls:
            raise AttributeError(f"'tensorrt.{name}' object has no attribute {key!r}")
        object.__setattr__(self, key, value)

    cls.__setattr__ = setattr_  # type: ignore[assignment]
    return cls


def _classes(trt: Any, major: int) -> dict[str, type]:
    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def log(self, severity: Any, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
        def step_complete(self, phase_name: str, step: int) -> bool: ...
        def phase_finish(self, phase_name: str) -> None: ...

    class IPluginRegistry:
        def load_library(self, plugin_path: str) -> object:
            if not Path(plugin_path).name.endswith("_trt8.so"):
                trt.registered.append(plugin_path)
            return object()

        def get_creator(self, kind: str, version: str, plugin_namespace: str = "") -> object | None:
            return object() if trt.registered and (kind, version) == ("SvdqLinear", "1") else None

    class Network:
        model = ""

    class Builder:
        _alive = 0

        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self._logger = logger
            Builder._alive += 1

        def __del__(self) -> None:
            Builder._alive -= 1

        def create_network(self, flags: int = 0) -> Network:
            strong = 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            assert flags == (strong if major == 10 else 0), "strongly typed, and nothing deprecated"
            return Network()

        def create_builder_config(self) -> Any:
            return trt.IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return trt.IOptimizationProfile()

        def build_serialized_network(self, network: Network, config: Any) -> bytes | None:
            monitor = config.progress_monitor
            for phase, steps in PHASES:
                monitor.phase_start(phase, None, steps)
                for step in range(steps):
                    if not monitor.step_complete(phase, step):
                        return None
                monitor.phase_finish(phase)
            faults = {"build": "Error Code 10: no implementation.", "memory": "Cuda failure: out of memory"}
            if trt.fault in faults:
                self._logger.log(ILogger.Severity.ERROR, f"IBuilder::buildSerializedNetwork: {faults[trt.fault]}\n")
                return None
            trt.made = {"flags": set(config._flags), "profiles": config._profiles, "cache": config._cache._data,
                        "verbosity": config.profiling_verbosity, "plugins": config.plugins_to_serialize}  # fmt: skip
            return b"engine of " + network.model.encode()

    class IBuilderConfig:
        profiling_verbosity = progress_monitor = None
        plugins_to_serialize: Any = ()

        def __init__(self) -> None:
            self._flags: set[Any] = set()
            self._profiles: list[Any] = []
            self._cache: Any = None

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag)

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            if serialized_timing_cache and trt.cache_fault == "raises":
                raise RuntimeError("cache of another device")
            if serialized_timing_cache and trt.cache_fault == "none":
                return None
            cache = trt.ITimingCache()
            cache._data = serialized_timing_cache
            return cache

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            if cache._data and trt.cache_fault == "refused":
                return False
            self._cache = cache
            return True

    class ITimingCache:
        _data = b""

        def serialize(self) -> bytes:
            return self._data + b"more"

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            assert all(lo <= mid <= hi for lo, mid, hi in zip(min, opt, max, strict=True))
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class OnnxParser:
        num_errors = 1

        def __init__(self, network: Network, logger: Any) -> None:
            self._network = network

        def parse_from_file(self, model: str) -> bool:
            assert Path(model).is_file()
            self._network.model = model
            return trt.fault != "parse"

        def get_error(self, index: int) -> Any:
            return trt.ParserError()

    class ParserError:
        def node_name(self) -> str:
            return "node_7"

        def node_operator(self) -> str:
            return "Frobnicate"

        def desc(self) -> str:
            return "No importer registered for op:\n  Frobnicate."

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            if trt.made["plugins"] and not self.engine_host_code_allowed:
                return None
            assert not trt.Builder._alive, "the memory of a builder is not there for the engine"
            if trt.fault == "load":
                return None
            engine = trt.ICudaEngine()
            engine._model = bytes(memoryview(serialized_engine)).removeprefix(b"engine of ").decode()
            return engine

    class ICudaEngine:
        device_memory_size_v2 = 5000

        def serialize(self) -> bytes:
            return b"engine of " + self._model.encode()

        def create_engine_inspector(self) -> Any:
            inspector = trt.EngineInspector()
            inspector._model = self._model
            return inspector

    class Refitter:
        def __init__(self, engine: Any, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            assert trt.BuilderFlag.REFIT in trt.made["flags"], "an engine that was built to be refitted"
            self._engine, self._model = engine, ""

        def refit_cuda_engine(self) -> bool:
            self._engine._model = self._model
            return trt.fault != "refit"

    class OnnxParserRefitter:
        num_errors = 1

        def __init__(self, refitter: Any, logger: Any) -> None:
            self._refitter = refitter

        def refit_from_file(self, model: str) -> bool:
            assert Path(model).is_file()
            self._refitter._model = model
            return trt.fault != "weights"

        def get_error(self, index: int) -> Any:
            return trt.ParserError()

    class EngineInspector:
        def get_engine_information(self, format: Any) -> str:
            assert format is trt.LayerInformationFormat.JSON
            assert trt.made["verbosity"] is trt.ProfilingVerbosity.DETAILED
            return information(self._model, major, trt.fault)

    found = (
        ILogger, IProgressMonitor, IPluginRegistry, Builder, IBuilderConfig, ITimingCache, IOptimizationProfile,
        OnnxParser, ParserError, Runtime, ICudaEngine, EngineInspector, Refitter, OnnxParserRefitter,
    )  # fmt: skip
    return {cls.__name__: cls for cls in found}
