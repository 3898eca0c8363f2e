"""The graphs of an artifact with LoRAs in them, written beside the base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from artifact.manifest import Artifact
from export.lora.fold import Applied, additions, deltas
from export.lora.model import Model
from export.lora.state import named
from passes.lora import Added, ExtendBranch, ranks
from passes.merge import Make, MergeWeights
from passes.verify import VerifyGraph
from passes.verify_tensorrt import VerifyTensorRT
from passes.write import write_model
from plugins.svdq_linear.spec import padded_rank

ITEM = {"float16": 2, "float32": 4}  # bytes


@dataclass
class Written:
    """New `files`; `models` and `rows`, which take the place of the base's in the manifest (see state.with_models);
    `ranks` {preset: {component: {layer: [rank before, rank after]}}}."""

    files: list[str] = field(default_factory=list)
    models: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    rows: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    ranks: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """What one graph gains: columns of its 4-bit layers and differences of its 16-bit weights; `own` are the ranks
    that its portable form had, `dtype` is its T."""

    added: Mapping[str, Added]
    merged: Mapping[str, Make]
    own: Mapping[str, int]
    dtype: str


def write_graphs(
    artifact: Artifact,
    base: Mapping[str, Any],
    model: Model,
    applied: Sequence[Applied],
    presets: Sequence[str],
    state: str,
) -> Written:
    """Write every graph that changes once, however many presets share it; a 4-bit one in both forms.

    `base` is the manifest without a LoRA. Raises UserError where float16 cannot hold what comes out.
    """
    written = Written()
    for part in model.parts.values():
        differences = deltas(part, applied)
        if not differences:
            continue
        name, dtype = part.component.name, part.component.dtype(base["dtype"])
        entry = base["components"][name]
        forms = written.models[name] = {f: {} for f in ("models", "tensorrt") if entry.get(f)}
        changes: dict[str, _Change] = {}
        done: dict[str, str] = {}
        for preset in presets:
            before = entry["models"][preset]
            if before not in changes:
                own = ranks(ir.load(artifact.path(before)))
                sixteen = {w: make for w, make in differences.items() if not (own and w in part.quantised)}
                changes[before] = _Change(additions(part, applied, dtype) if own else {}, sixteen, own, dtype)
                done |= _both(artifact, before, entry.get("tensorrt", {}).get(preset), state, changes[before], written)
            if changes[before].added:
                _tell(written, preset, name, base, changes[before])
            forms["models"][preset] = done[before]
            if preset in entry.get("tensorrt", {}):
                forms["tensorrt"][preset] = done[entry["tensorrt"][preset]]
    return written


def _both(
    artifact: Artifact, before: str, lowered: str | None, state: str, change: _Change, written: Written
) -> dict[str, str]:
    """Write the portable form, and the plugin form where it is another file. Returns {base's name: new name}."""
    graph = ir.load(artifact.path(before))
    ExtendBranch(change.added, change.own)(graph)
    MergeWeights(change.merged)(graph)
    VerifyGraph(len(change.own))(graph)
    done = {before: _save(artifact, graph, before, state, written)}
    if lowered is None or lowered == before:
        return done
    merged = ir.load(artifact.path(done[before])).graph.initializers
    graph = ir.load(artifact.path(lowered))
    ExtendBranch(change.added, change.own)(graph)
    for weight in change.merged:  # they lie in the portable form's data, like all that both forms have
        graph.graph.initializers[weight].const_value = merged[weight].const_value
    VerifyTensorRT(len(change.own))(graph)
    return done | {lowered: _save(artifact, graph, lowered, state, written)}


def _save(artifact: Artifact, graph: ir.Model, before: str, state: str, written: Written) -> str:
    """Write the graph beside the base's; what lies in files is referred to there. Returns its name."""
    name = named(before, state)
    tensors = [v.const_value for v in graph.graph.initializers.values()]
    lying = {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}
    files = write_model(graph, artifact.path(name), shared=lying)
    written.files += [str(Path(name).with_name(file.name)) for file in files]
    return name


def _tell(written: Written, preset: str, component: str, base: Mapping[str, Any], change: _Change) -> None:
    """The ranks and sizes of the layers that change, as the portable form has them."""
    told = written.ranks.setdefault(preset, {})[component] = {}
    rows = written.rows.setdefault(preset, {})[component] = {}
    for name, added in change.added.items():
        row, before = base["layers"][preset][component][name], change.own[name]
        rank = padded_rank(before + added.rank)
        more = (rank - before) * (row["k"] + row["n"]) * ITEM[change.dtype]
        rows[name] = {"rank": rank, "bytes": row["bytes"] + more}
        told[name] = [before, rank]
