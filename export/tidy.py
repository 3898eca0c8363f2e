"""What an exported graph carries: stable names, named sizes, module scopes, and nothing of the machine."""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

SCOPE = "svdq.scope"  # node metadata: dotted path of the module that computed it, "" for the component itself
_SCOPES = "pkg.torch.onnx.name_scopes"
_SYMBOL = re.compile(r"\b[su]\d+\b")


def tidy(model: ir.Model, outputs: tuple[str, ...], axes: dict[str, tuple[str | None, ...]]) -> None:
    """In place: name the outputs and every dynamic size, keep only scopes as metadata.

    `axes`: {input or output: names of its axes}, None for a fixed one.
    """
    graph = model.graph
    taken = {v.name for n in graph for v in n.outputs} | {v.name for v in graph.inputs} | set(graph.initializers)
    for value, name in zip(graph.outputs, outputs, strict=True):
        if value.name != name and name in taken:
            raise ValueError(f"output {name!r} is already the name of another value")
        value.name = name
    symbols = _symbols(graph, axes)
    for value in (*graph.inputs, *(v for n in graph for v in n.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_named(dim, symbols) for dim in value.shape])
    for value in (*graph.inputs, *graph.outputs):
        names = axes[value.name or ""]
        assert value.shape is not None and len(value.shape) == len(names)
        value.shape = ir.Shape([n if n else d for n, d in zip(names, value.shape, strict=True)])
    _strip(model)


def _symbols(graph: ir.Graph, axes: dict[str, tuple[str | None, ...]]) -> dict[str, str]:
    """{torch's symbol: our name} as the inputs' axes tell."""
    found: dict[str, str] = {}
    for value in graph.inputs:
        for dim, name in zip(value.shape or (), axes[value.name or ""], strict=True):
            if isinstance(dim, ir.SymbolicDim) and name and dim.value:
                found.setdefault(dim.value, name)
    return found


def _named(dim: int | ir.SymbolicDim, symbols: dict[str, str]) -> int | str | None:
    """A size with torch's symbols replaced; unknown where one of them is no input's."""
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if any(s not in symbols for s in _SYMBOL.findall(dim.value)):
        return None
    return _SYMBOL.sub(lambda m: symbols[m[0]], dim.value)


def _strip(model: ir.Model) -> None:
    """Remove documentation, producer and metadata; nodes keep SCOPE."""
    graph = model.graph
    model.producer_name = model.producer_version = model.domain = model.model_version = None
    graph.name = "graph"
    _clear(model)
    _clear(graph)
    for value in (*graph.inputs, *graph.initializers.values()):
        _clear(value)
    for node in graph.all_nodes():
        scope = _scope(node.metadata_props.get(_SCOPES))
        _clear(node)
        if scope is not None:
            node.metadata_props[SCOPE] = scope
        for value in node.outputs:
            _clear(value)


def _clear(holder: ir.Model | ir.Graph | ir.Node | ir.Value) -> None:
    holder.metadata_props.clear()
    holder.meta.clear()
    holder.doc_string = None


def _scope(scopes: str | None) -> str | None:
    """The dotted module path in the exporter's list of scopes, whose last entry is the torch operation."""
    if scopes is None:
        return None
    path = [s for s in ast.literal_eval(scopes)[:-1] if not s.startswith("_empty_nn_module_stack")]
    return path[-1] if path else ""
