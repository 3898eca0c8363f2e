"""What the probes say, what the recorder keeps, and what the modes really take, each in a process of its own."""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from artifact.errors import UserError
from artifact.free import available_bytes
from artifact.manifest import NAME, Artifact
from engines.memory import Probe, Recorder, probe, resident_bytes
from engines.modes import MODES, estimated_bytes
from tests.engines.test_trt_session import driver, libcuda
from tests.engines.tiny import Tiny

__all__ = ["driver", "libcuda"]  # fixtures
MB = 10**6
ROOT = Path(__file__).parents[2]


def test_the_rss_probe_sees_memory_come_and_go() -> None:
    rss = probe("onnxruntime")
    assert rss.name == "rss"
    before = rss.now()
    block = mmap.mmap(-1, 64 * MB)
    for _ in range(64):  # never a second block of that size, which would be seen, too
        block.write(b"\1" * MB)
    held = rss.now()
    block.close()
    assert 60 * MB < held - before < 72 * MB and rss.now() - before < 8 * MB
    assert rss.high_water is not None and rss.high_water() >= held - MB  # the kernel counts pages in batches
    assert resident_bytes("VmHWM") + MB >= resident_bytes("VmRSS") > 10 * MB


def test_the_recorder_keeps_samples_marks_and_the_peak() -> None:
    values = iter([100, 300, 200, 900, 400])
    now = {"bytes": 0}

    def read() -> int:
        now["bytes"] = next(values, now["bytes"])
        return now["bytes"]

    with Recorder(Probe("numbers", read), period_s=100) as recorder:  # only the marks sample
        for what in ("load a", "step 1", "free a"):
            recorder.mark(what)
    assert [b for _, b in recorder.samples] == [100, 300, 200, 900, 400]
    assert recorder.peak_bytes == 900
    assert [what for _, what in recorder.marks] == ["load a", "step 1", "free a"]
    times = [t for t, _ in recorder.samples]
    assert times == sorted(times) and not recorder._thread.is_alive()


def test_the_recorder_samples_by_itself_and_sees_a_peak_between_samples() -> None:
    water = iter([500, 700])
    with Recorder(Probe("numbers", lambda: 10, lambda: next(water)), period_s=0.001) as recorder:
        while len(recorder.samples) < 5:
            time.sleep(0.001)
    assert recorder.peak_bytes == 700
    water = iter([500, 500])
    with Recorder(Probe("numbers", lambda: 10, lambda: next(water)), period_s=1) as recorder:
        pass
    assert recorder.peak_bytes == 10  # the process's peak was before


def meminfo(root: Path, available_kb: int) -> None:
    (root / "proc").mkdir(parents=True, exist_ok=True)
    text = f"MemTotal:       7990000 kB\nMemFree:  1 kB\nMemAvailable:   {available_kb} kB\n"
    (root / "proc/meminfo").write_text(text, encoding="utf-8")


def test_a_container_has_what_it_is_allowed(tmp_path: Path) -> None:
    meminfo(tmp_path, 5_000_000)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 700\ninactive_file 50\n")
    for limit, free in (("max\n", 5_000_000 * 1024), ("1000\n", 150)):  # no limit; a container's
        (group / "memory.max").write_text(limit)
        assert available_bytes(tmp_path) == free


def test_on_a_jetson_it_is_what_device_or_system_lost_since(driver: Any, tmp_path: Path) -> None:
    from plugins.device import Device

    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").touch()
    meminfo(tmp_path, 5_000_000)
    assert available_bytes(tmp_path) == 5_000_000 * 1024
    found = probe("tensorrt", tmp_path)
    assert (found.name, found.now()) == ("cudaMemGetInfo + MemAvailable", 0)
    with Device() as device:
        memory = device.allocate(3 * MB)
        assert found.now() == 3 * MB
        meminfo(tmp_path, 4_000_000)
        assert found.now() == 1_000_000 * 1024  # the larger of the two
        memory.free()
    driver.lib.stand_in_forget()


# Two GPUs. The first has 40 processes, more than are asked for at once; ours is on the second, and one of the first
# whose memory is not known has our number, too.
NVML = """
#include <unistd.h>
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, part; } Process;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** device) { *device = (void*)(long)(i + 1); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void* device, unsigned* count, Process* listed) {
    unsigned there = device == (void*)1 ? 40 : 2;
    if (*count < there) { *count = there; return 7; }
    *count = there;
    for (unsigned i = 0; i < there; ++i) listed[i] = (Process){1, 7 << 20, 0, 0};
    if (there == 40) listed[39] = (Process){getpid(), ~0ull, 0, 0};
    else listed[1] = (Process){getpid(), 5 << 20, 0, 0};
    return 0;
}
"""


def test_nvml_knows_this_process_or_the_device_is_asked(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = str(tmp_path / "libnvml.so")
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", nvml]
    subprocess.run(command, input=NVML, text=True, check=True)
    found = probe("tensorrt", tmp_path, nvml)
    assert (found.name, found.now()) == ("nvml process memory", 5 << 20)
    monkeypatch.setattr("os.getpid", lambda: 2)  # as in a container, where the process has another number
    found = probe("tensorrt", tmp_path, nvml)
    assert (found.name, found.now()) == ("cudaMemGetInfo", 0)
    found = probe("tensorrt", tmp_path, str(tmp_path / "none.so"))
    assert found.name == "cudaMemGetInfo"
    driver.lib.stand_in_forget()


def test_without_a_gpu_device_memory_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDQ_LIBCUDA", "/nowhere/libcuda.so.1")
    with pytest.raises(UserError, match="There is no NVIDIA driver here"):
        probe("tensorrt", tmp_path)


def fattened(model: Path, megabytes: int) -> None:
    """Give a graph that much more weight: a chain of products beside its first output, which adds zero to it."""
    proto = onnx.load(model)
    output, width = proto.graph.output[0].name, 1024
    for node in proto.graph.node:
        for k, name in enumerate(node.output):
            if name == output:
                node.output[k] = "thin"
    row = [helper.make_node("ReduceSum", ["thin"], ["sum"], keepdims=0),
           helper.make_node("Mul", ["sum", "w"], ["h0"])]  # fmt: skip
    weights = [numpy_helper.from_array(np.zeros((1, width), np.float32), "w")]
    for i in range(megabytes * MB // (4 * width * width)):
        weights.append(numpy_helper.from_array(np.full((width, width), 1e-3 * (i + 1), np.float32), f"w{i}"))
        row.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]))
    row.append(helper.make_node("ReduceSum", [row[-1].output[0]], ["nothing"], keepdims=0))
    row.append(helper.make_node("Add", ["nothing", "thin"], [output]))
    proto.graph.node.extend(row)
    proto.graph.initializer.extend(weights)
    onnx.save(proto, model, save_as_external_data=True, location=f"{model.name}.data", size_threshold=1024)


@pytest.fixture(scope="module")
def heavy(flux: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FLUX artifact with a text encoder of 150 MB, a denoiser of 60 and a decoder of 100."""
    root = Path(shutil.copytree(flux.root, tmp_path_factory.mktemp("heavy") / "flux"))
    for component, megabytes in (("text_encoder_2", 150), ("transformer", 60), ("vae_decoder", 100)):
        fattened(root / component / "fp16.onnx", megabytes)
    return root


def peak(root: Path, mode: str) -> tuple[int, int]:
    """Peak above what the process held before the load, in a fresh process; and the estimate made there."""
    code = (
        "import json, sys; from engines.measure import measure; from engines.modes import *;"
        "from artifact.manifest import Artifact; import_libraries();"
        "from artifact.free import trim; from engines.memory import resident_bytes as r; trim();"
        "e = estimated_bytes(Artifact.open(sys.argv[1], False), 'fp16', 'onnxruntime', sys.argv[2]) - r('VmRSS');"
        "m = measure(sys.argv[1], 'fp16', 1, 1, sys.argv[2]);"
        "print(json.dumps([m['peak_bytes'] - m['before_load_bytes'], e]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, root, mode], cwd=ROOT, capture_output=True, text=True, check=True
    )
    measured, estimate = json.loads(done.stdout.strip().splitlines()[-1])
    return measured, estimate


def test_each_mode_peaks_well_below_the_one_before(heavy: Path) -> None:
    found = {mode: peak(heavy, mode) for mode in MODES}
    resident, pipelined, streaming = (found[mode][0] for mode in MODES)
    # Resident holds 310 MB of weights, pipelined 60 + 150, streaming 150.
    assert resident > 310 * MB
    assert resident - pipelined > 70 * MB
    assert pipelined - streaming > 35 * MB
    for measured, estimate in found.values():
        assert abs(estimate - measured) < 0.3 * measured


def test_a_budget_chooses_the_mode_that_stays_within_it(heavy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines import modes

    held = 500 * MB  # this process's own memory moves while tests run
    monkeypatch.setattr(modes, "resident_bytes", lambda _: held)
    artifact = Artifact.open(heavy, verify=False)
    budget = estimated_bytes(artifact, "fp16", "onnxruntime", "pipelined") + 30 * MB
    assert modes.choose_mode(artifact, "fp16", "onnxruntime", None, budget) == "pipelined"
    assert modes.choose_mode(artifact, "fp16", "onnxruntime", None, budget + 900 * MB) == "resident"
    held += 60 * MB  # what the process holds already counts
    assert modes.choose_mode(artifact, "fp16", "onnxruntime", None, budget) == "streaming"
    held += 900 * MB
    with pytest.raises(UserError, match=r"needs about \d+ MB in streaming mode, more than --max-memory"):
        modes.choose_mode(artifact, "fp16", "onnxruntime", None, budget)


def test_memory_that_really_runs_out_takes_the_next_mode(heavy: Path) -> None:
    """The process may map what pipelined mode takes and not what resident mode does: onnxruntime's own bad_alloc."""
    code = (
        "import sys, resource, engines; from engines.modes import import_libraries; import_libraries();"
        "import torch; torch.set_num_threads(1);"
        "size = next(int(l.split()[1]) * 1024 for l in open('/proc/self/status') if l.startswith('VmSize'));"
        "resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]),) * 2);"
        "pipe = engines.load(sys.argv[1], 'fp16', 1, verify=False);"
        "print(pipe.mode); print(pipe.notes[0] if pipe.notes else '')"
    )
    said = {}
    for allowed in (150 * MB, 3000 * MB):
        done = subprocess.run(
            [sys.executable, "-c", code, heavy, str(allowed)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-600:]
        said[allowed] = done.stdout.splitlines()
    assert said[3000 * MB][0] == "resident"
    mode, note = said[150 * MB]
    assert mode in ("pipelined", "streaming")
    assert "Memory ran out while loading" in note and "in resident mode" in note


def test_trimming_gives_freed_memory_back() -> None:
    code = (
        "from artifact.free import trim\nfrom engines.memory import resident_bytes as r\n"
        "blocks = [bytes(1000) for _ in range(100000)]; keep = blocks[-1]; held = r('VmRSS')\n"
        "keep = bytes(1000); del blocks; before = r('VmRSS'); trim(); print(held, before, r('VmRSS'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    held, _, after = map(int, done.stdout.split())
    assert held - after > 60 * MB


def test_an_artifact_without_a_component_s_graph_is_one_sentence(flux: Tiny, tmp_path: Path) -> None:
    import engines

    root = Path(shutil.copytree(flux.root, tmp_path / "copy"))
    (root / "text_encoder_2/fp16.onnx").unlink()
    for mode in MODES[:2]:
        with (
            pytest.raises(UserError, match="text_encoder_2/fp16.onnx is missing"),
            engines.load(root, verify=False, memory=mode) as pipe,
        ):
            pipe("a large red circle")
    with pytest.raises(UserError, match="text_encoder_2/fp16.onnx is missing"):
        engines.load(root)
    assert (root / NAME).is_file()
