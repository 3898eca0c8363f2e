"""Loads a plugin library through TensorRT's Python bindings and prints what it sees as JSON.

python client.py LIBRARY, with the bindings on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_lean_libs  # noqa: F401  (loads the runtime that the bindings need)

import tensorrt_lean_bindings as trt  # isort: skip

GOOD: dict[str, Any] = {
    "n": 192,
    "k": 128,
    "rank": 16,
    "layout_version": 1,
    "act_shift": 0.171875,
    "activation": "silu",
}


def collection(**values: Any) -> Any:
    kinds = {
        int: (np.int32, trt.PluginFieldType.INT32),
        float: (np.float32, trt.PluginFieldType.FLOAT32),
    }
    fields = []
    for name, value in values.items():
        if isinstance(value, str):
            fields.append(trt.PluginField(name, np.frombuffer(value.encode(), np.int8), trt.PluginFieldType.CHAR))
        else:
            dtype, kind = kinds[type(value)]
            fields.append(trt.PluginField(name, np.array([value], dtype), kind))
    return trt.PluginFieldCollection(fields)


def main(library: str) -> None:
    registry = trt.get_plugin_registry()

    def creator() -> Any:
        return registry.get_creator("SvdqLinear", "1", "")

    seen: dict[str, Any] = {"version": trt.__version__, "before": creator() is not None}
    handle = registry.load_library(library)
    found = creator()
    seen["creator"] = [found.name, found.plugin_version, found.plugin_namespace, found.interface_info.kind]
    seen["fields"] = [(field.name, str(field.type).split(".")[-1]) for field in found.field_names]

    def make(phase: Any = trt.TensorRTPhase.BUILD, **values: Any) -> Any:
        return found.create_plugin("node", collection(**values), phase)

    plugin = make(**GOOD)
    seen["good"] = [plugin is not None, make(trt.TensorRTPhase.RUNTIME, **GOOD) is not None]
    bad = [{**GOOD, "layout_version": 2}, {**GOOD, "activation": "relu"}, {**GOOD, "alpha": 1}, {"n": 192, "k": 128}]
    seen["bad"] = [make(**values) is not None for values in bad]

    kinds = trt.PluginCapabilityType
    core, build, runtime = (plugin.get_capability_interface(kind) for kind in (kinds.CORE, kinds.BUILD, kinds.RUNTIME))
    seen["interfaces"] = [interface.interface_info.kind for interface in (core, build, runtime)]
    seen["core"] = [core.plugin_name, core.plugin_version, core.plugin_namespace]
    seen["outputs"] = build.num_outputs
    seen["metadata"] = build.metadata_string
    seen["timing"] = build.timing_cache_id
    del plugin, core, build, runtime
    registry.deregister_library(handle)
    seen["after"] = creator() is not None
    print(json.dumps(seen))


main(sys.argv[1])
