"""trtexec, as far as its command line and files go: `stand_in_trtexec.py VERSION arguments...`.

It takes the flags of that version and no others (data/flags-*.txt), reads the graph, and writes what trtexec writes.
$STAND_IN_SM is the GPU's compute capability. $STAND_IN_FAULT: "float32", "unfused" and "names" as in
stand_in_layers.py; "error" fails as TensorRT does, "killed" as for want of memory, "cache" refuses any timing cache
that is there, "hang" never ends, "silent" writes no engine.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

DATA = Path(__file__).parent / "data"
SWITCHES = ("min", "opt", "max")


def main(version: str, words: list[str]) -> int:
    major, minor, patch = map(int, version.split("."))
    number = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec {' '.join(words)}")
    if "--help" in words:
        return 0
    known = set((DATA / f"flags-{version}.txt").read_text(encoding="utf-8").split())
    given = [word.partition("=") for word in words]
    for name, _, value in given:
        if name not in known:
            return error(f"Unknown option: {name} {value}")
    options = {name: value for name, _, value in given}
    if major < 10 and "--stronglyTyped" in options or major > 10 and "--fp16" in options:
        return error("this cannot happen: the table of flags is wrong")
    info(f"TensorRT version: {version}")
    info(f"Compute Capability: {os.environ.get('STAND_IN_SM', '8.7')}")
    fault = os.environ.get("STAND_IN_FAULT", "")
    if "--weightStreamingBudget" in options and "--allowWeightStreaming" not in options:
        return error("The weight streaming budget can only be set with --allowWeightStreaming specified.")
    plugin = options.get("--dynamicPlugins")
    if plugin and not Path(plugin).is_file():
        return error(f"Could not load library {plugin}")
    return benchmark(options, major, fault) if "--loadEngine" in options else build(options, major, fault)


def build(options: dict[str, str], major: int, fault: str) -> int:
    import onnx

    from tests.engines.trt.stand_in_layers import information

    partial = Path(options["--saveEngine"])
    if fault == "hang":
        partial.write_bytes(b"half an engine")
        print(f"pid {os.getpid()}", file=open(os.environ["STAND_IN_PID"], "w"))  # noqa: SIM115
        time.sleep(60)
    cache = options.get("--timingCacheFile")
    if fault == "cache" and cache and Path(cache).is_file():
        return error("TimingCache creation failed")
    if fault == "error":
        return error("Error[4]: [graphShapeAnalyzer.cpp::analyzeShapes::2084] Error Code 4: Miscellaneous (no tactic)")
    if fault == "killed":
        os.kill(os.getpid(), 9)
    graph = onnx.load(options["--onnx"], load_external_data=True).graph
    inputs = {v.name for v in graph.input}
    for which in SWITCHES:
        for shape in filter(None, options.get(f"--{which}Shapes", "").split(",")):
            name, _, dims = shape.partition(":")
            if name not in inputs:
                return error(f'Cannot find input tensor with name "{name}" in the network inputs!')
            assert all(d.isdigit() for d in dims.split("x")), shape
    if any(n.op_type == "SvdqLinear" for n in graph.node) and "--dynamicPlugins" not in options:
        return error(
            "[TRT] ModelImporter.cpp:949: Plugin not found, are the plugin name, version, and namespace correct?"
        )
    code = b"with a library, " if "--setPluginsToSerialize" in options else b""
    if fault != "silent":
        partial.write_bytes(code + b"engine of " + options["--onnx"].encode() + bytes(1000))
    if cache:
        Path(cache).write_bytes(b"timings " + version_bytes(major))
    Path(options["--exportLayerInfo"]).write_text(information(options["--onnx"], major, fault), encoding="utf-8")
    info("[TRT] Total Activation Memory: 5000 bytes")
    info("Created engine with size: 0.001 MiB")
    print("&&&& PASSED TensorRT.trtexec")
    return 0


def benchmark(options: dict[str, str], major: int, fault: str) -> int:
    if fault == "error":
        return error("Error[1]: IRuntime::deserializeCudaEngine: Error Code 1: Serialization (version tag)")
    if b"with a library" in Path(options["--loadEngine"]).read_bytes() and "--versionCompatible" not in options:
        return error("Error[1]: IRuntime::deserializeCudaEngine: the engine holds host code, which is not allowed")
    name = {8: "8.6", 10: "10.3", 11: "11.1"}[major]
    for flag, kind in (("--exportTimes", "times"), ("--exportProfile", "profile"), ("--exportLayerInfo", "layers")):
        Path(options[flag]).write_text((DATA / f"{kind}-{name}.json").read_text(encoding="utf-8"), encoding="utf-8")
    print((DATA / f"trtexec-{name}.log").read_text(encoding="utf-8"))
    return 0


def version_bytes(major: int) -> bytes:
    return str(major).encode()


def info(text: str) -> None:
    print(f"[11/21/2026-10:00:00] [I] {text}")


def error(text: str) -> int:
    print(f"[11/21/2026-10:00:00] [E] {text}")
    print("&&&& FAILED TensorRT.trtexec")
    return 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    sys.exit(main(sys.argv[1], sys.argv[2:]))
