"""The portable form becomes the plugin form: what TensorRT parses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from passes.clean import replace as replace_node
from passes.emit import Emitter, initializer
from passes.verify_tensorrt import PLUGIN_TYPES, is_plugin
from plugins.svdq_linear import layout, spec
from plugins.svdq_linear.spec import Variant

Make = Callable[[], np.ndarray]

_PADDED = ("inv_smooth", "bias")  # packed to themselves with zeros behind; the others change their order


class LowerToPlugin(ir.passes.InPlacePass):
    """Every svdq::SvdqLinear call of a function body → a TensorRT plugin node with constants in the kernel's layout.

    1. The node keeps its name, domain and x; it names no overload, and the function bodies go. Attributes: those of
       the variant, n and k without padding, the layout's version, the plugin's version and namespace.
    2. Its weights keep their names, so that a refit finds "<layer>.down" and "<layer>.up"; they are packed when they
       are written, one at a time. One that packing does not change (a bias, a smoothing without padding) stays the
       very tensor, so that it need not be written twice.
    3. With `reserve_rank`, down and up have zeros behind, up to that much more rank: room for a LoRA. A layer without
       a branch gets one of zeros.
    4. With `narrow`, a layer that computes in float32, which the plugin does not have, computes in that type instead:
       its weights are rounded to it, its x and y pass a Cast each; layers that read one x share its Cast.
    5. Refused with ValueError: a T that the plugin does not have, a weight that is computed or that others read.

    Parsers find the plugin by the node's type and its attributes plugin_version and plugin_namespace; from 10.10 they
    look for the node's domain where that finds nothing (onnx-tensorrt, FallbackPluginImporter in onnxOpImporters.cpp
    at 10.1-GA, and onnxOpCheckers.cpp at 10.10 and later). The domain is no default one because onnx.checker refuses
    an unknown operator there, and no parser asks for it.
    """

    def __init__(self, reserve_rank: int = 0, narrow: ir.DataType | None = None) -> None:
        self.reserve_rank = reserve_rank
        self.narrow = narrow

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if is_plugin(node)]
        casts: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            _lower(model.graph, node, self.reserve_rank, self.narrow, casts)
        for key in [k for k in model.functions if k[:2] == (spec.DOMAIN, spec.OP_TYPE)]:
            del model.functions[key]
        return ir.passes.PassResult(model, bool(nodes))


def _lower(
    graph: ir.Graph, node: ir.Node, reserve: int, narrow: ir.DataType | None, casts: dict[ir.Value, ir.Value]
) -> None:
    """Lower one node; `casts` are the narrowed x so far."""
    branch = len(node.inputs) == len(spec.INPUTS)
    variant = Variant.from_attributes({k: a.value for k, a in node.attributes.items()}, branch)
    weights = {name: _weight(node, name, v) for name, v in zip(variant.inputs[1:], node.inputs[1:], strict=True)}
    n, k = (int(d) for d in _tensor(weights["qweight"]).shape.numpy())
    rank = int(_tensor(weights["down"]).shape.numpy()[1]) if branch else 0
    lowered = replace(variant, branch=rank + reserve > 0)
    padded = spec.padded_rank(rank + reserve)
    wide = _tensor(weights["bias"]).dtype
    dtype = narrow if narrow is not None and wide == ir.DataType.FLOAT else wide
    if dtype not in PLUGIN_TYPES:
        have = " and ".join(t.name for t in PLUGIN_TYPES)
        raise ValueError(f"{node.name} computes in {dtype.name}; the plugin has {have}")
    for name, (shape, make) in _packed(weights, n, k, padded, variant.group_size, dtype).items():
        kind = ir.DataType.INT32 if name == "qweight" else dtype
        if name not in weights:
            base = str(weights["qweight"].name).removesuffix(".qweight")
            weights[name] = initializer(graph, f"{base}.{name}", _lazy(f"{base}.{name}", kind, shape, make))
        elif name not in _PADDED or tuple(_tensor(weights[name]).shape.numpy()) != shape or kind != wide:
            _set(weights[name], _lazy(str(weights[name].name), kind, shape, make))
    x = node.inputs[0] if dtype == wide else _narrowed(graph, node, dtype, casts)
    plugin = ir.node(
        spec.OP_TYPE,
        [x, *(weights[name] for name in lowered.inputs[1:])],
        {
            **lowered.attributes(padded),
            "n": n,
            "k": k,
            "layout_version": layout.LAYOUT_VERSION,
            "plugin_version": spec.PLUGIN_VERSION,
            "plugin_namespace": spec.PLUGIN_NAMESPACE,
        },
        domain=spec.DOMAIN,
        name=node.name,
    )
    plugin.metadata_props.update(node.metadata_props)
    y = plugin.outputs[0]
    back = Emitter(f"{node.name}/y", node.metadata_props.get("svdq.scope", ""))
    if dtype != wide:
        y.name = f"{node.name}/y"
        y = back("Cast", y, to=wide)
    replace_node(graph, node, [plugin, *back.nodes], y)


def _narrowed(graph: ir.Graph, node: ir.Node, dtype: ir.DataType, casts: dict[ir.Value, ir.Value]) -> ir.Value:
    """The node's x in `dtype`: cast in front of the first node that reads it."""
    x = node.inputs[0]
    assert x is not None
    if x not in casts:
        cast = Emitter(f"{node.name}/x", node.metadata_props.get("svdq.scope", ""))
        casts[x] = cast("Cast", x, to=dtype)
        graph.insert_before(node, cast.nodes)
    return casts[x]


def _packed(
    weights: dict[str, ir.Value], n: int, k: int, rank: int, group_size: int, dtype: ir.DataType
) -> dict[str, tuple[tuple[int, ...], Make]]:
    """Shape (as layout.py has it) and maker of every packed constant, which reads the portable tensor when called."""
    channels, columns = spec.padded_channels(k, group_size), layout.padded_outputs(n)
    steps, blocks = channels // layout.BLOCK, columns // layout.BLOCK
    kind = dtype.numpy()
    read = {name: partial(_array, _tensor(value), kind) for name, value in weights.items() if name != "qweight"}
    none = partial(np.zeros, dtype=kind)
    down, up = read.get("down", partial(none, (k, rank))), read.get("up", partial(none, (rank, n)))
    found: dict[str, tuple[tuple[int, ...], Make]] = {
        "qweight": ((blocks, steps, 512), partial(_packed_codes, _tensor(weights["qweight"]), channels)),
        "wscale": ((channels // group_size, columns), lambda: layout.pack_scale(read["wscale"]())),
        "inv_smooth": ((channels,), lambda: _zeros_behind(read["inv_smooth"](), (channels,))),
        "bias": ((columns,), lambda: _zeros_behind(read["bias"](), (columns,))),
    }
    if rank:
        block = (rank // spec.RANK_MULTIPLE, layout.BLOCK * spec.RANK_MULTIPLE)
        found["down"] = (steps, *block), lambda: layout.pack_down(_zeros_behind(down(), (k, rank)), channels)
        found["up"] = (blocks, *block), lambda: layout.pack_up(_zeros_behind(up(), (rank, n)))
    return found


def _weight(node: ir.Node, name: str, value: ir.Value | None) -> ir.Value:
    if value is None or not value.is_initializer() or value.const_value is None:
        raise ValueError(f"{node.name} has no constant {name}: the plugin form packs them all")
    if len(list(value.uses())) > 1 or value.is_graph_output():
        raise ValueError(f"{value.name} is read by more than {node.name}: it cannot be packed for that alone")
    return value


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _packed_codes(tensor: ir.TensorProtocol, channels: int) -> np.ndarray:
    """The layout of INT4 codes [N, K]."""
    n, k = (int(d) for d in tensor.shape.numpy())
    if k % 2:  # rows share bytes
        return layout.pack_weight(_array(tensor).astype(np.int8), channels)
    packed = np.frombuffer(tensor.tobytes(), np.uint8)
    _release(tensor)
    return layout.pack_weight_bytes(packed.reshape(n, k // 2), channels)


def _array(tensor: ir.TensorProtocol, dtype: np.dtype | None = None) -> np.ndarray:
    """A copy of the tensor's values, rounded to `dtype`, of which the tensor itself keeps nothing in memory."""
    array = np.array(tensor.numpy(), dtype)
    _release(tensor)
    return array


def _release(tensor: ir.TensorProtocol) -> None:
    """Let go of what reading mapped or unpacked: else every layer's codes would stay."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()


def _zeros_behind(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(values, [(0, size - have) for size, have in zip(shape, values.shape, strict=True)])


def _lazy(name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Make) -> ir.LazyTensor:
    def packed() -> ir.Tensor:
        array = np.ascontiguousarray(make())
        if array.shape != shape:
            raise ValueError(f"{name} was packed to {array.shape} where {shape} was announced")
        return ir.Tensor(array, dtype=dtype, name=name)

    return ir.LazyTensor(packed, dtype, ir.Shape(shape), name=name)


def _set(value: ir.Value, tensor: ir.LazyTensor) -> None:
    value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
