"""Exported graphs in the store, so that a rebuild, another preset or another target exports nothing again.

Stored without weights and without paths: a weight is a name, a dtype and a shape until it is bound to a source.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from artifact.store import Store, key_of
from export.components import Component
from export.graph import IR_VERSION, OPSET, export_graph
from export.source import Source
from export.weights import bind_weights, unbound, weight_values

EXPORT_VERSION = 3  # raised whenever the same component and versions would give another graph
_PACKAGES = ("torch", "diffusers", "transformers", "onnxscript", "onnx-ir")


def prepared(source: Source, component: Component, dtype: str, store: Store) -> ir.Model:
    """`graph.prepare` through the store: the same graph, exported at most once."""
    key = graph_key(component, dtype)
    model = load_prepared(store, key)
    if model is None:
        model = export_graph(component, dtype)
        save_prepared(model, store, key)
    return bind_weights(model, source, component)


@dataclass(frozen=True)
class Exporter:
    """Exports a component into the store at `store`, in whatever process; small enough to be pickled."""

    dtype: str
    store: str

    def __call__(self, component: Component) -> None:
        save_prepared(export_graph(component, self.dtype), Store(self.store), graph_key(component, self.dtype))


def graph_key(component: Component, dtype: str) -> str:
    """Key of all that shapes the graph: the component, its dtype and the versions that export it."""
    versions = {p: importlib.metadata.version(p) for p in _PACKAGES}
    parts = (component.cls, component.role, component.config, component.dtype(dtype), versions, OPSET, IR_VERSION)
    return key_of("graph", str(EXPORT_VERSION), json.dumps(parts, sort_keys=True))


def graph_bytes(model: ir.Model) -> bytes:
    """The serialised graph without weights and without any file's name; equal graphs give equal bytes."""
    weights = {v: v.const_value for v in weight_values(model)}
    try:
        for value in weights:
            value.const_value = unbound(value)
        return ir.to_proto(model).SerializeToString(deterministic=True)
    finally:
        for value, tensor in weights.items():
            value.const_value = tensor


def save_prepared(model: ir.Model, store: Store, key: str) -> None:
    """Store the graph under `key`."""
    store.put_bytes(key, graph_bytes(model))


def load_prepared(store: Store, key: str) -> ir.Model | None:
    """The graph stored under `key`, its weights unbound (see `weights.bind_weights`), or None."""
    data = store.get_bytes(key)
    return None if data is None else ir.from_proto(onnx.ModelProto.FromString(data))
