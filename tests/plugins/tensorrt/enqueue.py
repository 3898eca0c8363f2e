"""One layer through a plugin library, as TensorRT would run it, in a process of its own (enqueue.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plugins.svdq_linear.layout import Packed
from tests.plugins.tensorrt import toolchain

Array = np.ndarray[Any, Any]


def attributes_text(attributes: Mapping[str, int | float | str]) -> list[str]:
    kinds = {int: "int", float: "float", str: "text"}
    return [f"{kinds[type(value)]} {name} {value!r}".replace("'", "") for name, value in attributes.items()]


def enqueue(
    host: Path,
    library: Path,
    folder: Path,
    attributes: Mapping[str, int | float | str],
    x: Array,
    packed: Packed,
    tactic: int = 0,
    **variables: str,
) -> tuple[Array, list[int]]:
    """y T[..., n] of x T[..., k], and the tactics that the plugin offers for this shape.

    `attributes` are the node's, n and layout_version included. Raises AssertionError with the step that refused.
    `variables` are set in the process: LD_LIBRARY_PATH for a stand-in libcuda.so.1.
    """
    lines = attributes_text(attributes)
    for number, array in enumerate([x, *(one for one in packed if one is not None)]):
        (folder / f"{number}.bin").write_bytes(np.ascontiguousarray(array).tobytes())
        lines.append(f"input {array.dtype.name} {'x'.join(map(str, array.shape))} {number}.bin")
    shape = (*x.shape[:-1], int(attributes["n"]))
    lines += [f"output {x.dtype.name} {'x'.join(map(str, shape))} y.bin", f"tactic {tactic}"]
    (folder / "case.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = toolchain.run([host, library, folder], **variables)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    y = np.frombuffer((folder / "y.bin").read_bytes(), x.dtype).reshape(shape)
    return y, [int(word) for word in done.stdout.split("tactics", 1)[1].split()]
