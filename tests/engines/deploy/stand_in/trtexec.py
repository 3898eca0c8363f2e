"""A trtexec for machines without one: prints its banner, checks its flags as TensorRT's own does, writes a plan.

STAND_IN_TRTEXEC: "fail" ends with an error, "memory" is killed for want of memory, "nothing" writes no plan.
STAND_IN_NUMBER: NV_TENSORRT_VERSION in the banner.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

number = os.environ.get("STAND_IN_NUMBER", "100300")
print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec {' '.join(sys.argv[1:])}")
if "--help" in sys.argv:
    sys.exit(0)
given = dict(a.split("=", 1) if "=" in a else (a, "") for a in sys.argv[1:])
known = {
    "--onnx", "--saveEngine", "--stronglyTyped", "--minShapes", "--optShapes", "--maxShapes", "--dynamicPlugins",
    "--timingCacheFile", "--profilingVerbosity", "--exportLayerInfo", "--skipInference", "--fp16",
    "--precisionConstraints", "--layerPrecisions", "--layerOutputTypes",
}  # fmt: skip
if unknown := sorted(set(given) - known):
    sys.exit(f"[E] Unknown option: {unknown[0]}")
mode = os.environ.get("STAND_IN_TRTEXEC", "")
component = Path(given["--onnx"]).parent.name
if mode.startswith("fail:") and mode.endswith(component):
    print("[11/21/2026-12:00:00] [E] Error[4]: the kernel of this layer is missing")
    sys.exit(1)
if mode == "memory":
    Path(given["--saveEngine"]).write_text("half")
    os.kill(os.getpid(), 9)
if mode == "nothing":
    sys.exit(0)


def shapes(flag: str) -> dict[str, list[int]]:
    """Of "name:1x2,other:3"; no flag where every shape is fixed."""
    pairs = (part.rsplit(":", 1) for part in given.get(flag, "").split(",") if part)
    return {name.strip("'"): [int(d) for d in dims.split("x")] for name, dims in pairs}


onnx = Path(given["--onnx"]).resolve()
plan = {"onnx": str(onnx), "plugin": "--dynamicPlugins" in given}
plan |= {"min": shapes("--minShapes"), "max": shapes("--maxShapes")}
Path(given["--saveEngine"]).write_text(json.dumps(plan))
Path(given["--exportLayerInfo"]).write_text("{}")
