"""A LoRA in the low-rank branch: more columns of down, more rows of up, nothing quantised again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from passes.clean import replace as replace_node
from passes.emit import initializer
from passes.fuse import define, template
from passes.stacked import lazy
from passes.verify_tensorrt import is_plugin
from plugins.svdq_linear import layout, spec
from plugins.svdq_linear.spec import Variant

Make = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Added:
    """What one layer's branch gains: y += (x · down) · up.

    `rank` is not padded; `down()` [K, rank] and `up()` [rank, N] are made when they are written.
    """

    rank: int
    down: Make
    up: Make


class ExtendBranch(ir.passes.InPlacePass):
    """A SvdqLinear node gains the columns of `added[its name]` behind its own, and zeros up to a multiple of 16.

    1. Both forms: of a plugin node the packed constants are unpacked, extended and packed again.
    2. A plugin node may have room: `occupied[its name]` is the rank that it uses of its own. Where the new columns fit
       into what is left, its shapes and attributes stay, and so its engine can be refitted.
    3. A node without a branch gets one; a portable call then names the overload that has it.
    4. What the quantiser chose stays as it is: qweight, wscale, inv_smooth and bias are not touched.
    5. Raises ValueError where `added` names a layer that the graph has not.
    """

    def __init__(self, added: Mapping[str, Added], occupied: Mapping[str, int]) -> None:
        self.added = added
        self.occupied = occupied

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = {str(node.name): node for node in model.graph if is_plugin(node)}
        for name, added in self.added.items():
            if name not in nodes:
                raise ValueError(f"{name} is no 4-bit layer of the graph")
            _extend(model, nodes[name], added, self.occupied[name])
        RemoveUnusedFunctionsPass()(model)  # of overloads that nothing calls any more
        return ir.passes.PassResult(model, bool(self.added))


def ranks(model: ir.Model) -> dict[str, int]:
    """{layer: the rank that its branch has in this graph}, padding and reserve included, 0 without a branch."""
    return {str(node.name): node.attributes["rank"].as_int() for node in model.graph if is_plugin(node)}


@dataclass(frozen=True)
class _Side:
    """How one form keeps down or up: `axis` is the rank's, `size` the other one's (K or N)."""

    axis: int
    size: int
    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[int], tuple[int, ...]]


def _sides(node: ir.Node, weights: Mapping[str, ir.Value]) -> dict[str, _Side]:
    if "layout_version" not in node.attributes:
        n, k = (int(d) for d in _tensor(weights["qweight"]).shape.numpy())
        return {
            "down": _Side(1, k, np.ascontiguousarray, np.asarray, lambda rank: (k, rank)),
            "up": _Side(0, n, np.ascontiguousarray, np.asarray, lambda rank: (rank, n)),
        }
    n, k = node.attributes["n"].as_int(), node.attributes["k"].as_int()
    channels = spec.padded_channels(k, node.attributes["group_size"].as_int())
    steps, blocks, block = channels // layout.BLOCK, layout.padded_outputs(n) // layout.BLOCK, layout.BLOCK * 16
    return {
        "down": _Side(
            1,
            k,
            lambda array: layout.pack_down(array, channels),
            lambda array: layout.unpack_down(array, k),
            lambda rank: (steps, rank // 16, block),
        ),
        "up": _Side(
            0,
            n,
            layout.pack_up,
            lambda array: layout.unpack_up(array, n),
            lambda rank: (blocks, rank // 16, block),
        ),
    }


def _extend(model: ir.Model, node: ir.Node, added: Added, occupied: int) -> None:
    before = node.attributes["rank"].as_int()
    names = spec.INPUTS if before else tuple(name for name in spec.INPUTS if name not in spec.BRANCH_INPUTS)
    weights = {name: value for name, value in zip(names, node.inputs, strict=True) if value is not None}
    rank = max(before, spec.padded_rank(occupied + added.rank))
    dtype = _tensor(weights["bias"]).dtype
    base = str(weights["qweight"].name).removesuffix(".qweight")
    for field, side in _sides(node, weights).items():
        own = _tensor(weights[field]) if before else None
        make = added.down if field == "down" else added.up
        tensor = lazy(
            f"{base}.{field}", dtype, side.shape(rank), partial(_joined, side, own, occupied, make, rank, dtype)
        )
        if before:
            weights[field].const_value, weights[field].shape = tensor, ir.Shape(tensor.shape.numpy())
        else:
            weights[field] = initializer(model.graph, f"{base}.{field}", tensor)
    if before:
        node.attributes["rank"] = ir.AttrInt64("rank", rank)
    else:
        _with_branch(model, node, weights, rank)


def _joined(
    side: _Side, own: ir.TensorProtocol | None, occupied: int, make: Make, rank: int, dtype: ir.DataType
) -> np.ndarray:
    """The layer's own columns (of down; rows of up), the new ones, and zeros; in the form's layout."""
    new = make().astype(dtype.numpy())
    shape = (side.size, rank) if side.axis else (rank, side.size)
    full = np.zeros(shape, new.dtype)
    by_rank = full.T if side.axis else full  # a view: rows are ranks
    if own is not None:
        kept = side.unpack(np.array(own.numpy()))
        by_rank[:occupied] = (kept.T if side.axis else kept)[:occupied]
    rows = new.T if side.axis else new
    by_rank[occupied : occupied + len(rows)] = rows
    return side.pack(full)


def _with_branch(model: ir.Model, node: ir.Node, weights: Mapping[str, ir.Value], rank: int) -> None:
    """The node gets the two inputs that it had not, and a portable call the overload whose body reads them."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()} | {"rank": rank}
    overload = ""
    if node.overload:
        pattern = template(
            Variant.from_attributes(attributes, branch=True), _tensor(weights["qweight"]).shape.numpy()[1]
        )
        define(model, pattern)
        overload = pattern.overload
    new = ir.node(
        spec.OP_TYPE,
        [weights[name] for name in spec.INPUTS],
        attributes,
        domain=spec.DOMAIN,
        overload=overload,
        name=node.name,
    )
    new.metadata_props.update(node.metadata_props)
    replace_node(model.graph, node, [new], new.outputs[0])


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value
