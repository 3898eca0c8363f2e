"""A graph as it is costed: every node with the shapes and types of what it reads and writes, without its weights.

Shapes are propagated node by node from concrete input shapes with ONNX's own inference; small integer tensors (targets
of Reshape, Slice's ends) are computed on the way, so that dynamic axes resolve. Of external data only small integer
tensors are read: a graph with 24 GB of weights costs as much as one without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifact.errors import UserError
from engines.cost import shape_rules

Shape = tuple[int, ...]

SMALL = 4096  # elements of a tensor whose value is followed
_INTEGERS = frozenset({"INT64", "INT32", "BOOL", "UINT8", "INT8"})


@dataclass(frozen=True)
class Tensor:
    """A value of the graph. `dtype`: ONNX's name, such as "FLOAT16". `constant`: it does not depend on any input, and
    `stored`: it is an initializer.

    `shape` is None where it could not be inferred, which is told and never taken for nothing.
    """

    name: str
    shape: Shape | None
    dtype: str
    constant: bool = False
    stored: bool = False

    @property
    def elements(self) -> int:
        """Number of elements; 0 where the shape is unknown."""
        return math.prod(self.shape) if self.shape is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory, 4-bit types packed two to a byte; 0 where the shape is unknown."""
        return -(-self.elements * bits(self.dtype) // 8)


@dataclass(frozen=True)
class Op:
    """A node. `inputs` holds None where an optional input is absent; `attributes` are plain Python values."""

    name: str
    domain: str
    kind: str
    attributes: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]

    @property
    def title(self) -> str:
        """The operator's name with its domain, where that is not ONNX's own."""
        return f"{self.domain}.{self.kind}" if self.domain else self.kind

    @property
    def constant(self) -> bool:
        """Whether it depends on no input of the graph, so that a builder computes it once."""
        return bool(self.inputs) and all(t is None or t.constant for t in self.inputs)

    @property
    def known(self) -> bool:
        """Whether the shapes of all that it reads and writes are known."""
        return all(t is None or t.shape is not None for t in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class Graph:
    """`ops` in an order in which they can run; `inputs` and `outputs` of the graph; `weights`: its initializers."""

    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        return sum(w.nbytes for w in self.weights)


def bits(dtype: str) -> int:
    """Bits per element of an ONNX type name: 16 for FLOAT16, 4 for INT4. Raises KeyError for another name."""
    return _BITS[dtype]


_BITS = {
    "FLOAT": 32, "FLOAT16": 16, "BFLOAT16": 16, "DOUBLE": 64, "INT64": 64, "UINT64": 64, "INT32": 32, "UINT32": 32,
    "INT16": 16, "UINT16": 16, "INT8": 8, "UINT8": 8, "BOOL": 8, "INT4": 4, "UINT4": 4, "FLOAT8E4M3FN": 8,
    "FLOAT8E5M2": 8, "FLOAT4E2M1": 4, "STRING": 64, "COMPLEX64": 64, "COMPLEX128": 128, "UNDEFINED": 0,
}  # fmt: skip


def read(model: Path, shapes: Mapping[str, Shape]) -> Graph:
    """The graph of the .onnx file with inputs of these `shapes`.

    Raises UserError where the file is no model, or an input has no shape or one that the graph does not take.
    """
    import onnx

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except Exception as e:  # protobuf's errors share no base class
        raise UserError(f"{model} is not an ONNX model ({type(e).__name__}): copy the artifact again.") from None
    return walk(proto, shapes, model.parent)


def walk(proto: Any, shapes: Mapping[str, Shape], directory: Path | None = None) -> Graph:
    """The graph of an onnx.ModelProto; `directory` is where its external data lie (None: it has none)."""
    return _Walk(proto, shapes, directory).graph()


class _Walk:
    """One pass over a model's nodes; `types` and `values` hold what is known of every name so far."""

    def __init__(self, proto: Any, shapes: Mapping[str, Shape], directory: Path | None) -> None:
        import onnx
        from onnx import inliner

        self.onnx, self.directory = onnx, directory
        others = [(f.domain, f.name) for f in proto.functions if (f.domain, f.name) not in shape_rules.RULES]
        self.proto = inliner.inline_selected_functions(proto, others) if others else proto
        self.opsets = {o.domain or "": o.version for o in self.proto.opset_import}
        self.types: dict[str, Any] = {}
        self.values: dict[str, Any] = {}  # TensorProto by name
        self.constants: set[str] = set()
        self.stored: set[str] = set()
        self.shapes = shapes

    def graph(self) -> Graph:
        source = self.proto.graph
        weights = [self._weight(t) for t in source.initializer]
        inputs = [self._input(v) for v in source.input if v.name not in self.constants]
        ops = [self._op(node) for node in source.node]
        outputs = [self._tensor(o.name) for o in source.output]
        return Graph(tuple(ops), tuple(inputs), tuple(outputs), tuple(weights))

    def _weight(self, tensor: Any) -> Tensor:
        self.types[tensor.name] = self.onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        self.constants.add(tensor.name)
        self.stored.add(tensor.name)
        if math.prod(tensor.dims) <= SMALL:
            value = self._small(tensor)
            if value is not None:
                self.values[tensor.name] = value
        return self._tensor(tensor.name)

    def _small(self, tensor: Any) -> Any:
        """The tensor with its value; None where that is external and not of integers."""
        external = tensor.data_location == self.onnx.TensorProto.EXTERNAL
        if not external:
            return tensor
        name = self.onnx.TensorProto.DataType.Name(tensor.data_type)
        if name not in _INTEGERS or self.directory is None:
            return None
        loaded = self.onnx.TensorProto()
        loaded.CopyFrom(tensor)
        try:
            self.onnx.external_data_helper.load_external_data_for_tensor(loaded, str(self.directory))
        except Exception:  # the shapes that hang on it are then unknown, which the prediction tells
            return None
        return loaded

    def _input(self, value: Any) -> Tensor:
        name, kind = value.name, value.type.tensor_type
        if name not in self.shapes:
            raise UserError(f"Input {name!r} of the graph has no shape: rebuild the artifact.")
        shape = tuple(int(d) for d in self.shapes[name])
        dims = [d.dim_value or None for d in kind.shape.dim]
        fits = len(dims) == len(shape) and all(d is None or d == s for d, s in zip(dims, shape, strict=True))
        if not fits:
            raise UserError(f"Input {name!r} of the graph does not take the shape {list(shape)}: choose another size.")
        self.types[name] = self.onnx.helper.make_tensor_type_proto(kind.elem_type, list(shape))
        return self._tensor(name)

    def _tensor(self, name: str) -> Tensor:
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type"):
            return Tensor(name, None, "UNDEFINED", name in self.constants, name in self.stored)
        tensor = kind.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        known = tensor.HasField("shape") and None not in dims
        dtype = self.onnx.TensorProto.DataType.Name(tensor.elem_type)
        shape = tuple(d for d in dims if d is not None) if known else None
        return Tensor(name, shape, dtype, name in self.constants, name in self.stored)

    def _op(self, node: Any) -> Op:
        helper = self.onnx.helper
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = tuple(self._tensor(n) if n else None for n in node.input)
        domain = "" if node.domain in ("", "ai.onnx") else node.domain
        rule = shape_rules.RULES.get((domain, node.op_type))
        if rule is not None:
            for name, (shape, dtype) in zip(node.output, rule(attributes, inputs), strict=False):
                self.types[name] = helper.make_tensor_type_proto(getattr(self.onnx.TensorProto, dtype), shape)
        else:
            self._infer(node, domain)
        self._evaluate(node, domain)
        if all(t is None or t.constant for t in inputs):
            self.constants.update(node.output)
        outputs = tuple(self._tensor(n) for n in node.output if n)
        return Op(node.name, domain, node.op_type, attributes, inputs, outputs)

    def _infer(self, node: Any, domain: str) -> None:
        """ONNX's own shape inference for one node. A node that it does not know leaves its outputs unknown."""
        onnx = self.onnx
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
            known = {n: self.types[n] for n in node.input if n}
            data = {n: self.values[n] for n in node.input if n in self.values}
            opsets = [onnx.helper.make_opsetid(d, v) for d, v in self.opsets.items()]
            self.types.update(onnx.shape_inference.infer_node_outputs(schema, node, known, data, None, opsets))
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, KeyError, RuntimeError):
            return

    def _evaluate(self, node: Any, domain: str) -> None:
        """Follow the values of small tensors: they are the shapes of others."""
        if domain or not all(self._tensor(n).shape is not None for n in node.output if n):
            return
        helper = self.onnx.numpy_helper
        if node.op_type == "Shape":
            shape = self._tensor(node.input[0]).shape
            if shape is not None:
                at = {a.name: a.i for a in node.attribute}
                part = np.array(shape[at.get("start", 0) : at.get("end", len(shape))], np.int64)
                self.values[node.output[0]] = helper.from_array(part, node.output[0])
            return
        known = all(not n or n in self.values for n in node.input)
        if not known or any(self._tensor(n).elements > SMALL for n in node.output if n):
            return
        if node.op_type not in _FOLLOWED:
            return
        from onnx.reference import ReferenceEvaluator

        try:
            feeds = {n: helper.to_array(self.values[n]) for n in node.input if n}
            results = ReferenceEvaluator(node, opsets=self.opsets).run(None, feeds)
        except Exception:  # a value that is not followed only leaves shapes unknown, which is told
            return
        for name, value in zip(node.output, results, strict=False):
            if name:
                self.values[name] = helper.from_array(np.asarray(value), name)


# Operators whose small results become shapes.
_FOLLOWED = frozenset({
    "Constant", "ConstantOfShape", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Cast", "Add", "Sub", "Mul",
    "Div", "Mod", "Neg", "Min", "Max", "Where", "Equal", "Less", "Greater", "Not", "And", "Or", "Reshape", "Range",
    "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Size", "Identity", "Expand", "Floor", "Ceil", "Split", "Abs",
    "Sqrt", "Pow", "CumSum", "Tile", "Transpose", "GreaterOrEqual", "LessOrEqual",
})  # fmt: skip
