"""q, k and v of one attention become one linear."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import onnx_ir as ir

from passes.emit import Emitter, initializer
from passes.linear import WEIGHT, Linear, find_linears
from passes.policy import FOUR_BIT, Policy
from passes.stacked import SOURCES, stack, zeros

# "<module>.to_q", "<module>.add_q_proj", "<module>.q_proj", "<module>.q": the letter is what the siblings differ in.
_SIBLING = re.compile(r"^(?P<module>.*\.)?(?P<before>to_|add_)?(?P<letter>[qkv])(?P<after>_proj)?$")
_ORDER = "qkv"


class MergeAttentionSiblings(ir.passes.InPlacePass):
    """Linears of one attention that read one tensor become one linear of stacked rows, followed by a Split.

    1. Siblings: same module, same name but for the letter q, k or v, same input value, same K, and 4-bit by policy.
    2. Where some of them have a bias, a missing one is zeros.
    3. Left alone: a single sibling, AdaLN modulations, cross-attention k/v that read another tensor than q, and a
       parallel MLP on the same input (its name is no sibling's).

    The merged layer is named by its letters: to_q, to_k, to_v → to_qkv. It has one smoothing vector and one
    down-projection because it is one layer from here on.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups: dict[tuple[str, ir.Value], list[tuple[str, Linear]]] = defaultdict(list)
        for linear in find_linears(model.graph):
            match = _SIBLING.match(linear.name)
            if match and self.policy.scheme(linear.name) == FOUR_BIT:
                template = f"{match['module'] or ''}{match['before'] or ''}{{}}{match['after'] or ''}"
                groups[template, linear.x].append((match["letter"], linear))
        modified = False
        for (template, _), members in groups.items():
            members.sort(key=lambda m: _ORDER.index(m[0]))
            if len(members) > 1 and len({m.k for _, m in members}) == 1:
                name = template.format("".join(letter for letter, _ in members))
                _merge(model.graph, name, [m for _, m in members])
                modified = True
        return ir.passes.PassResult(model, modified)


def _merge(graph: ir.Graph, name: str, members: list[Linear]) -> None:
    first = min(members, key=lambda m: list(graph).index(m.matmul))
    tensors = [m.weight.const_value for m in members]
    assert all(t is not None for t in tensors)
    weight = initializer(graph, name + WEIGHT, stack(name + WEIGHT, tensors))  # type: ignore[arg-type]
    weight.metadata_props[SOURCES] = json.dumps([m.weight.name for m in members])
    emit = Emitter(name, name)
    y = emit("MatMul", first.x, emit("Transpose", weight, perm=[1, 0]))
    if any(m.bias is not None for m in members):
        dtype = tensors[0].dtype  # type: ignore[union-attr]
        parts = [m.bias.const_value if m.bias is not None else zeros(f"{m.name}.bias", dtype, m.n) for m in members]
        bias = initializer(graph, f"{name}.bias", stack(f"{name}.bias", parts))  # type: ignore[arg-type]
        bias.metadata_props[SOURCES] = json.dumps([m.bias.name if m.bias is not None else None for m in members])
        y = emit("Add", y, bias)
    sizes = emit.const([m.n for m in members], "int64")
    outputs = emit.multi("Split", [y, sizes], len(members), axis=-1)
    graph.insert_before(first.matmul, emit.nodes)
    for member, output in zip(members, outputs, strict=True):
        old = member.y
        output.type, output.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        graph.remove(list(reversed(member.nodes)), safe=True)
