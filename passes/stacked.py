"""Weights that the graph passes make from others without reading them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

SOURCES = "svdq.sources"  # metadata of a value: the source initializers it is stacked from, along N
COLUMNS = "svdq.columns"  # metadata of a value: [start, stop) of the source weights' columns


def lazy(name: str, dtype: ir.DataType, shape: Sequence[int], make: object) -> ir.LazyTensor:
    """A tensor whose numpy array is made by `make()` when it is written."""
    return ir.LazyTensor(lambda: ir.tensor(make(), dtype=dtype), dtype, ir.Shape(shape), name=name)  # type: ignore[operator]


def stack(name: str, parts: Sequence[ir.TensorProtocol]) -> ir.LazyTensor:
    """The parts, [N_i, K] or [N_i], one under the other."""
    shapes = [p.shape.numpy() for p in parts]
    shape = [sum(s[0] for s in shapes), *shapes[0][1:]]
    return lazy(name, parts[0].dtype, shape, lambda: np.concatenate([p.numpy() for p in parts]))


def columns(name: str, part: ir.TensorProtocol, start: int, stop: int) -> ir.LazyTensor:
    """Columns start..stop of a weight [N, K]."""
    return lazy(
        name,
        part.dtype,
        [part.shape.numpy()[0], stop - start],
        lambda: np.ascontiguousarray(part.numpy()[:, start:stop]),
    )


def zeros(name: str, dtype: ir.DataType, n: int) -> ir.TensorProtocol:
    """A bias of n zeros."""
    return ir.tensor(np.zeros(n, dtype.numpy()), dtype=dtype, name=name)


def sources(value: ir.Value) -> tuple[str, ...]:
    """Names of the initializers that a weight was made from; its own where it was not."""
    text = value.metadata_props.get(SOURCES)
    return tuple(json.loads(text)) if text else (str(value.name),)


def source_columns(value: ir.Value) -> tuple[int, int] | None:
    """The columns of the sources that a weight holds, or None for all of them."""
    text = value.metadata_props.get(COLUMNS)
    return tuple(json.loads(text)) if text else None
