"""Weights of a graph by reference: pointers into the source's files, bound by name after the graph is made."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx_ir as ir

from artifact.errors import UserError
from export.components import Component
from export.safetensors_index import Weight
from export.source import Source
from export.tables import STORED, gather_as_stored, is_table

PIECE_BYTES = 64 << 20  # of a converted weight in memory while it is written
UNBOUND = "weights"  # location of a weight that no file has been named for yet
_ONNX_TYPE = {
    "F64": ir.DataType.DOUBLE, "F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64, "I32": ir.DataType.INT32, "I16": ir.DataType.INT16, "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8, "BOOL": ir.DataType.BOOL,
}  # fmt: skip


def unbound(value: ir.Value) -> ir.ExternalTensor:
    """The stand-in for a weight: its dtype, shape and name, no file."""
    assert value.dtype is not None and value.name is not None
    shape = ir.Shape(value.shape or ())
    return ir.ExternalTensor(UNBOUND, None, None, value.dtype, shape=shape, name=value.name, base_dir="")


def weight_values(model: ir.Model) -> list[ir.Value]:
    """The initializers that are weights: those that refer to a file, or are converted from one when read."""
    found = model.graph.initializers.values()
    return [v for v in found if isinstance(v.const_value, (ir.ExternalTensor, ir.LazyTensor))]


def bind_weights(model: ir.Model, source: Source, component: Component) -> ir.Model:
    """Point every weight of the graph into the source's files, in place; returns `model`.

    A weight whose file has the graph's dtype becomes an ExternalTensor; one of another dtype, or of which the graph
    has a part (`Row.last_frame`), is converted when it is read (LazyTensor), so nothing is loaded here. A table of
    which the graph gathers rows keeps the file's type where that has 16 bits and the graph 32 (tables.py). Raises
    UserError where a file lacks a weight or has another shape.
    """
    index = source.weights(component.module)
    for value in weight_values(model):
        weight = find_weight(component, index, value.name or "")
        shape = value.shape.numpy() if value.shape is not None else ()
        part = any(fnmatchcase(value.name or "", glob) for glob in component.row.last_frame)
        if (_one_frame(weight.shape) if part else weight.shape) != shape:
            raise UserError(
                f"{weight.name} in {weight.file} has shape {list(weight.shape)}, {component.cls} of this config has "
                f"{list(shape)}{' in each frame' if part else ''}: config.json and weights are not of one model."
            )
        assert value.dtype is not None and value.name is not None
        kind = _ONNX_TYPE.get(weight.dtype)
        if value.dtype == ir.DataType.FLOAT and kind in STORED and is_table(value):
            gather_as_stored(model.graph, value, kind)
        value.const_value = _tensor(weight, value.dtype, value.name, part)
    return model


def find_weight(component: Component, index: Mapping[str, Weight], name: str) -> Weight:
    """The file's tensor for a parameter of the module. Raises UserError where there is none."""
    for candidate in component.row.file_names(name):
        if candidate in index:
            return index[candidate]
    raise UserError(
        f"The weights of {component.module} have no {name!r}, which {component.cls} of this config needs: config.json "
        "and weights are not of one model, or a shard is missing."
    )


def _one_frame(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[..., frames, rows, columns] without its frames."""
    return (*shape[:-3], *shape[-2:])


def _tensor(weight: Weight, dtype: ir.DataType, name: str, last_frame: bool) -> ir.TensorProtocol:
    """The weight in the graph's dtype, or its last frame."""
    shape = ir.Shape(_one_frame(weight.shape) if last_frame else weight.shape)
    file = weight.file.resolve()  # hub caches are links; readers of external data refuse those
    # They refuse hard links, too, which some caches and copies consist of: such a file is read as if to be converted.
    if _ONNX_TYPE.get(weight.dtype) == dtype and not last_frame and file.stat().st_nlink == 1:
        return ir.ExternalTensor(
            file.name, weight.offset, weight.nbytes, dtype, shape=shape, name=name, base_dir=str(file.parent)
        )
    return _Converted(partial(_converted, weight, dtype, name, last_frame), dtype=dtype, shape=shape, name=name)


def _converted(weight: Weight, dtype: ir.DataType, name: str, last_frame: bool, rows: slice = slice(None)) -> ir.Tensor:
    """Read and round those `rows` of a weight. Raises UserError where float16 cannot hold a value."""
    data = weight.read()[..., -1, :, :] if last_frame else weight.read()
    data = data[rows] if data.ndim else data
    if dtype == ir.DataType.FLOAT16 and data.dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        largest = float(np.abs(data).max(initial=0))
        if largest > float(np.finfo(np.float16).max):
            raise UserError(f"{weight.name} reaches {largest:.3g}, beyond float16: build with --dtype float32.")
    return ir.Tensor(data.astype(dtype.numpy()), dtype=dtype, name=name)


class _Converted(ir.LazyTensor):
    """A weight of another dtype in the file: written some rows at a time, for embeddings have gigabytes."""

    def tofile(self, file: Any) -> None:
        rows, convert = self.shape.numpy()[0] if len(self.shape) else 1, cast(Any, self.raw)
        step = max(1, PIECE_BYTES * rows // max(1, self.nbytes))
        for start in range(0, rows, step):
            convert(rows=slice(start, start + step)).tofile(file)
