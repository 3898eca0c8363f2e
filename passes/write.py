"""The rewritten graph as files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from artifact.files import PARTIAL, as_user_error, check_room

INLINE_BYTES = 1024  # weights up to this size stay in the .onnx file


def write_model(model: ir.Model, path: Path, shared: Collection[Path] = ()) -> list[Path]:
    """Write `path` (.onnx) and its weights beside it (.onnx.data); both appear whole, the model last.

    Weights above 1 KiB go to the data file, one after the other in the graph's order, each read when it is written.
    What lies in the `shared` files, which are in the same directory, is referred to there and not written again: two
    forms of one graph hold what they have in common once. Returns the files written. Raises UserError where the disk
    has less room than the weights need, or is not writable.
    """
    folder = path.parent / f".{path.name}{PARTIAL}"
    data = f"{path.name}.data"
    kept = {v: v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None}
    assert all(file.parent == path.parent for file in shared)
    there = {v: t for v, t in kept.items() if isinstance(t, ir.ExternalTensor) and Path(t.path) in shared}
    size = sum(tensor.nbytes for value, tensor in kept.items() if value not in there)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        check_room(path, size)
        folder.mkdir(parents=True)
        for value in there:
            value.const_value = None  # unloading leaves out what has no value
        ir.external_data.unload_from_model(model, folder, data, size_threshold_bytes=INLINE_BYTES)
        for value, lying in there.items():
            value.const_value = lying
        ir.save(model, folder / path.name)
        names = [data, path.name] if (folder / data).exists() else [path.name]
        for name in names:
            with open(folder / name, "rb") as f:
                os.fsync(f.fileno())
        for name in names:
            os.replace(folder / name, path.parent / name)
    except OSError as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise as_user_error(e, path, size) from e
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor
        shutil.rmtree(folder, ignore_errors=True)
    return [path.parent / name for name in names]
