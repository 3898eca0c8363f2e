"""The builder and the benchmark through trtexec, where TensorRT's own tool is on the machine.

The flags are those of samples/common/sampleOptions.cpp in NVIDIA/TensorRT at v8.6.1, v10.3.0, v10.16 and v11.1. Our
library is given with --dynamicPlugins, always: --staticPlugins only opens a library, and ours registers nothing then.

    8.6    weakly typed: --fp16 allows 16 bits, and what the graph has in float32 is named to stay so
    10     --stronglyTyped: every tensor is what the graph says
    11     strong typing is all there is (the flag does nothing); CUDA graphs and no data transfers are the default
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from engines.trt import graph
from engines.trt.job import Job, Made, Say
from engines.trt.profiles import Profile
from engines.trt.versions import OLDEST_API, Version

JETPACK_PATH = Path("/usr/src/tensorrt/bin/trtexec")
OLDEST_TRTEXEC = (8, 6)
HOW_TO_GET_IT = (
    f"There is no trtexec on PATH, below $TRT_ROOT/bin or at {JETPACK_PATH}: on a Jetson `sudo apt-get install "
    "tensorrt` of JetPack puts it there, TensorRT's tar file has it in bin/, and NVIDIA/TensorRT on GitHub builds it "
    "(samples/trtexec); set TRT_ROOT to where it is."
)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Files:
    """What a build reads and writes, as words of its command: paths, or variables of a shell script."""

    model: str
    plan: str
    layers: str
    cache: str | None = None
    plugin: str | None = None


def find(environment: Mapping[str, str] = os.environ, jetpack: Path = JETPACK_PATH) -> Path | None:
    """trtexec of PATH, else of $TRT_ROOT or $TensorRT_ROOT, else where JetPack puts it; None without one."""
    on_path = shutil.which("trtexec", path=environment.get("PATH", ""))
    roots = [Path(environment[n]) for n in ("TRT_ROOT", "TensorRT_ROOT") if environment.get(n)]
    candidates = [Path(on_path)] if on_path else []
    candidates += [root / where for root in roots for where in ("bin/trtexec", "trtexec")]
    return next((p for p in [*candidates, jetpack] if p.is_file() and os.access(p, os.X_OK)), None)


def require() -> Path:
    """`find`, or a UserError that says how to get one."""
    path = find()
    if path is None:
        raise UserError(HOW_TO_GET_IT)
    return path


def version(tool: Path) -> Version:
    """What it prints in its first line. Raises UserError where it does not run or prints none."""
    try:
        ran = subprocess.run([str(tool), "--help"], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UserError(f"{tool} does not run ({e}): reinstall TensorRT.") from None
    found = re.search(r"\[TensorRT v(\d+)\]", ran.stdout + ran.stderr)
    if not found:
        said = (ran.stderr.strip() or ran.stdout.strip() or f"exit code {ran.returncode}").splitlines()[0]
        raise UserError(f"{tool} does not say which TensorRT it is of ({said[:200]}): reinstall TensorRT.")
    return Version.of_number(int(found[1]))


def check_version(found: Version) -> None:
    """Raises UserError for a TensorRT whose trtexec we cannot build with."""
    if (found.major, found.minor) < OLDEST_TRTEXEC or (8, 6) < (found.major, found.minor) < OLDEST_API:
        raise UserError(f"TensorRT {found} is not supported: use 8.6, or 10.3 or later.")


def build_arguments(job: Job, files: Files) -> list[str]:
    """What follows trtexec in the command that builds `job`. Raises UserError for what that version cannot do."""
    check_version(job.version)
    _refuse_misread(job)
    words = [f"--onnx={files.model}", f"--saveEngine={files.plan}", *typing_flags(job), *shape_flags(job.profile)]
    if files.plugin:
        words.append(f"--dynamicPlugins={files.plugin}")
    if files.plugin and job.plugin_in_plan:
        words += ["--versionCompatible", f"--setPluginsToSerialize={files.plugin}"]
    if job.refit:
        words.append("--refit")
    if job.weight_streaming:
        if job.version.major < 10:
            raise UserError(f"TensorRT {job.version} has no weight streaming: build without --weight-streaming.")
        words.append("--allowWeightStreaming")
    if files.cache:
        words.append(f"--timingCacheFile={files.cache}")
    return [*words, "--profilingVerbosity=detailed", f"--exportLayerInfo={files.layers}", "--skipInference"]


def typing_flags(job: Job) -> list[str]:
    """How the types of the graph are kept."""
    if job.version.major >= 11:
        return []
    if job.version.major == 10:
        return ["--stronglyTyped"]
    wide = sorted(n for n in graph.read(job.model).float32_results if not re.search(r"[:,*'\s]", n))
    if not wide:
        return ["--fp16"]
    kept = ",".join(f"{name}:fp32" for name in wide)
    return ["--fp16", "--precisionConstraints=prefer", f"--layerPrecisions={kept}", f"--layerOutputTypes={kept}"]


def _refuse_misread(job: Job) -> None:
    """TensorRT 8.6's parser looks for a reduction's axes among the attributes only, and without them reduces all
    (onnx-tensorrt, builtin_op_importers.cpp at 8.6-GA): an engine that is silently wrong."""
    if job.version.major >= 10:
        return
    if lost := graph.read(job.model).axes_as_inputs:
        raise UserError(
            f"TensorRT {job.version.short} misreads {len(lost)} nodes of {job.component}, the first is {lost[0]!r} (a "
            "reduction with its axes as an input): use TensorRT 10.3 or later, which JetPack 6.1 brings."
        )


def shape_flags(profile: Profile) -> list[str]:
    """The optimisation profile, of those inputs that have open axes."""
    named = {name: shapes for name, shapes in profile.items() if shapes.dynamic}
    return [
        f"--{which}Shapes=" + ",".join(f"{name}:{_times(getattr(s, which))}" for name, s in named.items())
        for which in ("min", "opt", "max")
        if named
    ]


def build(job: Job, output: Path, say: Say, tool: Path | None = None) -> Made:
    """Write the engine of `job` to `output`; what trtexec says of it.

    Raises UserError with trtexec's own error where it fails. trtexec ends with this process, however that ends.
    """
    tool = tool or require()
    layers, cache = output.with_name(output.name + ".layers.partial"), output.with_name(output.name + ".cache.partial")
    whole = job.cache.path.with_name(f"{job.component}.{job.preset}.log")
    whole.unlink(missing_ok=True)
    kept = job.cache.read(say)
    try:
        if kept:
            cache.write_bytes(kept)
        plugin = str(job.plugin) if job.plugin else None
        files = Files(str(job.model), str(output), str(layers), str(cache), plugin)
        command = [str(tool), *build_arguments(job, files)]
        code, log = run(command)
        if code and kept and re.search(r"\[E\].*timing ?cache", log, re.I):
            say(job.cache.ignored("trtexec does not take it"))
            cache.unlink(missing_ok=True)
            code, log = run(command)
        if code or not output.is_file():
            whole.write_text(log, encoding="utf-8")
            raise UserError(
                f"trtexec {job.version} built no engine for {job.component} of {job.preset} ({failure(code, log)}): "
                f"its whole log is {whole}."
            )
        if cache.is_file():
            job.cache.write(cache.read_bytes(), say)
        said = re.findall(r"Total Activation Memory: (\d+) bytes", log)
        return Made(layers.read_text(encoding="utf-8"), int(said[-1]) if said else None)
    except FileNotFoundError:
        raise UserError(f"{tool} {job.version} wrote no layer information for {job.component}: build again.") from None
    finally:
        for path in (layers, cache):
            path.unlink(missing_ok=True)


def run(command: Sequence[str], timeout: float | None = None) -> tuple[int, str]:
    """Exit code and output of a command that dies with this process. Raises UserError where it cannot be started."""
    try:
        process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            preexec_fn=_die_with_parent,
        )  # fmt: skip
    except OSError as e:
        raise UserError(f"{command[0]} cannot be started ({e.strerror}): reinstall TensorRT.") from None
    with process:
        try:
            log, _ = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return process.returncode, log


def benchmark_arguments(
    version: Version, plan: Path, plugin: Path | None, shapes: Mapping[str, Sequence[int]], out: Files,
    seconds: int, weight_budget: str | None = None, carries_code: bool = False,
) -> list[str]:  # fmt: skip
    """What follows trtexec in the command that times an engine for `seconds` at `shapes`, transfers left out.

    `out` names the files: `plan` for the times, `model` for the profile, `layers` for the layer information.
    `carries_code`: the plugin's library is in the engine, which trtexec runs only where it is told so.
    """
    words = [f"--loadEngine={plan}"]
    if carries_code:
        words.append("--versionCompatible")
    if shapes:
        words.append("--shapes=" + ",".join(f"{name}:{_times(shape)}" for name, shape in shapes.items()))
    if plugin:
        words.append(f"--dynamicPlugins={plugin}")
    if version.major < 11:
        words += ["--useCudaGraph", "--noDataTransfers", "--useSpinWait"]
    if weight_budget is not None:
        words += ["--allowWeightStreaming", f"--weightStreamingBudget={weight_budget}"]
    words += ["--warmUp=500", f"--duration={seconds}", "--iterations=10", "--percentile=50,90,99"]
    words += ["--separateProfileRun", f"--exportTimes={out.plan}", f"--exportProfile={out.model}"]
    return [*words, f"--exportLayerInfo={out.layers}", "--profilingVerbosity=detailed"]


def read_times(path: Path) -> dict[str, list[float]]:
    """--exportTimes: milliseconds of every query, "compute_ms" on the GPU and "latency_ms" with the transfers.

    A list with one object per query after the warm-up, the same from 8.6 to 11 (exportJSONTrace in
    samples/common/sampleReporting.cpp). Raises UserError for a file that is not that.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        times = {f"{kind}_ms": [float(r[f"{kind}Ms"]) for r in rows] for kind in ("latency", "compute")}
    except OSError as e:
        raise UserError(f"Cannot read {path} ({e.strerror}): give the file that trtexec --exportTimes wrote.") from None
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(
            f"{path} is not what trtexec --exportTimes writes ({type(e).__name__}: {e}): run trtexec again to its end."
        ) from None
    if not rows:
        raise UserError(f"{path} holds no inference: give trtexec a longer --duration or more --iterations.")
    bad = [t for t in times["latency_ms"] if not (math.isfinite(t) and t > 0)]
    bad += [t for t in times["compute_ms"] if not (math.isfinite(t) and t >= 0)]
    if bad:
        raise UserError(f"{path} holds a time of {bad[0]} ms: run trtexec again.")
    return times


def read_profile(text: str) -> list[dict[str, Any]]:
    """--exportProfile: {"name", "average_ms", "median_ms" or None, "percent"} of every layer, the slowest first.

    Raises UserError where it is not that.
    """
    try:
        rows = [r for r in json.loads(text) if "name" in r]
        found = [
            {
                "name": str(r["name"]),
                "average_ms": float(r["averageMs"]),
                "median_ms": float(r["medianMs"]) if "medianMs" in r else None,
                "percent": float(r["percentage"]),
            }
            for r in rows
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            "trtexec's layer profile cannot be read (damaged, or of another version): run it again."
        ) from None
    return sorted(found, key=lambda r: -float(r["average_ms"] or 0))


def read_summary(log: str) -> dict[str, Any]:
    """What trtexec prints of a run: "throughput_qps", "gpu" and "latency" in ms by statistic, "engine_mib", "warnings".

    A figure that it did not print is absent.
    """
    found: dict[str, Any] = {"warnings": re.findall(r"\[W\] (?:\[TRT\] )?\* (.+)", log)}
    for key, label in (("gpu", "GPU Compute Time"), ("latency", "Latency")):
        line = re.search(rf"\[I\] {label}: (min = .+)", log)
        if line:
            pairs = re.findall(r"(min|max|mean|median|percentile\((\d+)%\)) = ([\d.e+-]+) ms", line[1])
            found[key] = {f"p{p}" if p else name: float(value) for name, p, value in pairs}
    for key, pattern in (
        ("throughput_qps", r"\[I\] Throughput: ([\d.e+-]+) qps"),
        ("engine_mib", r"Created engine with size: ([\d.e+-]+) MiB"),
    ):
        value = re.search(pattern, log)
        if value:
            found[key] = float(value[1])
    return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 (nearest rank above) and the mean."""
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (90, 99)}
    return {"p50": statistics.median(ordered), **ranks, "mean": statistics.fmean(ordered)}


def failure(code: int, log: str) -> str:
    """trtexec's first error, without its stamp."""
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}" + (", as for want of memory" if code == -9 else "")
    errors = re.findall(r"\[E\] (.+)", log)
    if errors:
        return " ".join(errors[0].split()).rstrip(".")[:300]
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no output")
    return f"exit code {code}: {last[:200]}"


def _times(shape: Sequence[int]) -> str:
    return "x".join(str(d) for d in shape) if shape else "scalar"


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent goes (prctl(2)); elsewhere nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
