"""A process that runs cases on the CPU's stand-in for a GPU: its environment says how that schedules and what it is.

Reads one JSON object per line, {"run": name, ...fields of Case}, and answers each with a line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from plugins.device import Device
from plugins.svdq_linear import reference
from plugins.svdq_linear.run import SvdqLinear
from tests.plugins.kernels.case import DTYPES, Case, unpack_codes


def layer_of(device: Device, case: Case) -> tuple[SvdqLinear, int]:
    layer = SvdqLinear(device, case.constants, case.variant, Path(os.environ["SVDQ_LIBRARY"]))
    return layer, {name: number for number, name in layer.tiles(case.m).items()}[case.tile]


def compare(device: Device, case: Case) -> dict[str, object]:
    """y against the oracle."""
    layer, tile = layer_of(device, case)
    y = layer(case.x, tile)
    return {"wrong": case.disagreements(y), "of": y.size, "bits": hashlib.sha256(y.tobytes()).hexdigest()}


def compare_codes(device: Device, case: Case) -> dict[str, object]:
    """The first kernel's codes and scales against the oracle, bit for bit."""
    layer, tile = layer_of(device, case)
    given, workspace = device.upload(case.x), layer.workspace(case.m)
    layer.enqueue_quantize(given.pointer, case.m, workspace, tile)
    device.synchronize()
    as_bytes = case.act_bits == 8 or float(device.capability) >= 9
    written = workspace.read(np.uint8, (workspace.size,))
    codes, scales = unpack_codes(written, case.m, case.k, case.variant, as_bytes)
    dtype = DTYPES[case.dtype]
    expected, expected_scales = reference.quantize_activation(case.x, case.constants["inv_smooth"], case.variant, dtype)
    nan = np.isnan(expected_scales.astype(np.float32))
    same = (scales == expected_scales.view(np.uint16)) | (nan & np.isnan(scales.view(dtype).astype(np.float32)))
    return {"codes": int((codes != expected).sum()), "scales": int((~same).sum())}


def replay(device: Device, case: Case) -> dict[str, object]:
    """y by a captured graph, replayed on new input, against the oracle; the capture itself must run nothing."""
    layer, tile = layer_of(device, case)
    layer.prepare()
    x, y = device.upload(np.zeros_like(case.x)), device.allocate(case.m * case.n * 2)
    y.fill(0x3C)
    workspace, stream = layer.workspace(case.m), device.stream()
    with stream.capture() as graph:
        layer.enqueue(x.pointer, y.pointer, case.m, workspace, tile, stream.handle)
    untouched = bool((y.read(np.uint8, (y.size,)) == 0x3C).all())
    x.write(case.x)
    for _ in range(2):
        graph.launch(stream)
    stream.synchronize()
    return {"wrong": case.disagreements(y.read(DTYPES[case.dtype], (case.m, case.n))), "untouched": untouched}


def main() -> None:
    with Device() as device:
        for line in sys.stdin:
            fields = json.loads(line)
            run = {"compare": compare, "codes": compare_codes, "replay": replay}[fields.pop("run")]
            with np.errstate(all="ignore"):
                print(json.dumps(run(device, Case(**fields))), flush=True)


if __name__ == "__main__":
    main()
