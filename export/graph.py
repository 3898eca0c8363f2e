"""One component as an ONNX graph whose weights stay in the source's files."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from export.alike import Run, shorten
from export.components import DTYPES, Component
from export.fake_module import fake_module
from export.fold import simplify
from export.names import name_by_scope
from export.repeat import repeat
from export.source import Source
from export.tidy import tidy
from export.weights import bind_weights, unbound

OPSET = 20  # TensorRT 10.3 parses no later one
IR_VERSION = 10
_LOG = logging.getLogger(__name__)


def prepare(source: Source, component: Component, dtype: str) -> ir.Model:
    """The component's graph in `dtype` ("float32" or "float16"), every size of `axes` dynamic.

    Weights are references into the source's files: peak memory is that of the graph, not of the model. A linear is
    Transpose(weight) → MatMul → Add for inputs of more than two axes, else Gemm(transB=1); its weight is the
    initializer "<module path>.weight". Raises UserError where weights and config do not belong together.
    """
    return bind_weights(export_graph(component, dtype), source, component)


def export_graph(component: Component, dtype: str, whole: bool = False) -> ir.Model:
    """The graph alone, its weights still bound to no file.

    Of blocks that are alike four are exported and one of them repeated, unless that fails, which is said, or the
    `whole` is asked for; the graph is the same to the byte. The exporter's time and memory grow with what it exports.
    """
    module, mode = fake_module(component, component.dtype(dtype))
    runs = [] if whole else shorten(module)
    try:
        return _exported(component, component.dtype(dtype), module, mode, runs)
    except Exception as e:  # what a model does without some of its blocks, it may not do with all of them
        if not runs:
            raise
        _LOG.warning("%s is exported with all of its blocks, which takes longer: %s", component.name, _first_line(e))
    return export_graph(component, dtype, whole=True)


def _first_line(e: Exception) -> str:
    return next(iter(str(e).splitlines()), type(e).__name__)


def _exported(
    component: Component, dtype: str, module: torch.nn.Module, mode: FakeTensorMode, runs: Sequence[Run]
) -> ir.Model:
    row = component.row
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    with mode:
        generator = torch.Generator().manual_seed(0)
        inputs = row.inputs(component.config, row.export_shapes, DTYPES[dtype], generator)
    axes = row.axes(component.config)
    dynamic = {k: {i: torch.export.Dim.DYNAMIC for i, n in enumerate(axes[k]) if n} for k in inputs}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, (), kwargs=inputs, dynamic_shapes=dynamic, dynamo=True, optimize=False, opset_version=OPSET,
            verbose=False, report=False,
        )  # fmt: skip
        assert program is not None
        model = program.model
        for name, value in model.graph.initializers.items():
            if name in weights:
                value.const_value = None  # no value, so that nothing folds, renames or merges it
        simplify(model)
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = unbound(value)
    tidy(model, row.outputs, axes)
    repeat(model, runs)
    name_by_scope(model)
    model.ir_version = IR_VERSION
    return model


def write_graph(model: ir.Model, path: Path) -> None:
    """Write `path` with every weight copied into `<name>.data` beside it, one tensor in memory at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {v: v.const_value for v in model.graph.initializers.values()}
    ir.save(model, path, external_data=path.name + ".data")
    for value, tensor in kept.items():  # saving leaves the model pointing at what it wrote
        value.const_value = tensor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that we do not use."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
