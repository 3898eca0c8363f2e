"""The rewritten graph as files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx_ir as ir

from artifact.files import PARTIAL, as_user_error


def write_model(model: ir.Model, path: Path) -> list[Path]:
    """Write `path` (.onnx) and its weights beside it (.onnx.data); both appear whole, the model last.

    Weights above 1 KiB go to the data file, one after the other in the graph's order, each read when it is written.
    Returns the files. Raises UserError where the disk is full or not writable.
    """
    folder = path.parent / f".{path.name}{PARTIAL}"
    data = f"{path.name}.data"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ir.save(model, folder / path.name, external_data=data, size_threshold_bytes=1024)
        names = [data, path.name] if (folder / data).exists() else [path.name]
        for name in names:
            with open(folder / name, "rb") as f:
                os.fsync(f.fileno())
        for name in names:
            os.replace(folder / name, path.parent / name)
    except OSError as e:
        raise as_user_error(e, path) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [path.parent / name for name in names]
