"""The builder through TensorRT's Python API: 10.3 and later, 11 included.

What differs between the versions: 11 knows strong typing only, so that its flag does nothing, and has no precision
flags; both are reached with strong typing alone, because the graph states the type of every tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from artifact.errors import UserError
from engines.trt import versions
from engines.trt.job import Job, Made, Say
from engines.trt.plan import mapped
from plugins.library import load_into_tensorrt

#: What hears of progress: the phase's name, finished steps, steps in all. A finished phase has as many as there are.
Progress = Callable[[str, int, int], None]


def build(job: Job, output: Path, say: Say, progress: Progress | None = None) -> Made:
    """Write the engine of `job` to `output`; what TensorRT says of it.

    Raises UserError where TensorRT refuses the graph or finds no engine for it, PluginError where the plugin does not
    load. Ctrl-C ends the build at TensorRT's next step.
    """
    trt = versions.python_module()
    if trt is None:
        raise UserError("The Python package tensorrt is not here: install JetPack's or NVIDIA's, or use trtexec.")
    if (job.version.major, job.version.minor) < versions.OLDEST_API:
        raise UserError(f"TensorRT {job.version} is too old for the Python builder (10.3 at least): use trtexec.")
    heard: list[str] = []
    logger = make_logger(trt, heard)
    if job.plugin:
        load_into_tensorrt(trt, job.plugin)
    _build(trt, logger, heard, job, output, say, progress)
    # The builder, the parsed weights and the serialised engine are gone: on a Jetson the loaded one takes their place.
    engine = load(trt, logger, output, job)
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return Made(information, int(engine.device_memory_size_v2))


def _build(
    trt: Any, logger: Any, heard: list[str], job: Job, output: Path, say: Say, progress: Progress | None
) -> None:
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, job))
    _parse(trt, network, logger, job)
    config, cache = _config(trt, builder, job, say)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    serialized = _interruptible(lambda: builder.build_serialized_network(network, config), monitor)
    if serialized is None:
        why = f" ({heard[-1]})" if heard else ""
        raise UserError(
            f"TensorRT {job.version} found no engine for {job.component} of {job.preset}{why}: {_advice(heard)}"
        )
    output.write_bytes(memoryview(serialized))
    if cache is not None:
        job.cache.write(bytes(memoryview(cache.serialize())), say)


def _network_flags(trt: Any, job: Job) -> int:
    """Strong typing where it is a choice. From 11 on it is all there is, and naming it only warns."""
    if job.version.major >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: Any, network: Any, logger: Any, job: Job) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(job.model)):  # a path, so that the parser finds the external data beside it
        return
    if not parser.num_errors:
        raise UserError(f"TensorRT {job.version} cannot read {job.model}: copy the artifact again or rebuild it.")
    error = parser.get_error(0)
    node = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_name() else "the graph"
    raise UserError(
        f"TensorRT {job.version} refuses {node} of {job.model}: {one_line(error.desc())}. "
        "Build the artifact again with this version, or report the node."
    )


def _config(trt: Any, builder: Any, job: Job, say: Say) -> tuple[Any, Any]:
    """The builder's configuration and the timing cache in it."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the layers are read back
    profile = builder.create_optimization_profile()
    for name, shapes in job.profile.items():
        if shapes.dynamic:
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if any(shapes.dynamic for shapes in job.profile.values()):
        config.add_optimization_profile(profile)
    if job.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if job.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if job.plugin and job.plugin_in_plan:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.plugins_to_serialize = [str(job.plugin)]
    return config, _timing_cache(config, job, say)


def _timing_cache(config: Any, job: Job, say: Say) -> Any:
    """The kept cache, or a new one where it does not fit; None where this TensorRT takes neither."""
    if data := job.cache.read(say):
        try:
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
            why = "TensorRT does not take it"
        except Exception as e:  # what a strange cache raises is not documented
            why = one_line(str(e))
        say(job.cache.ignored(why))
    cache = config.create_timing_cache(b"")
    return cache if cache is not None and config.set_timing_cache(cache, False) else None


def load(trt: Any, logger: Any, path: Path, job: Job) -> Any:
    """The engine of `job` in the file at `path`, deserialised; its plugin is registered. Raises UserError where
    TensorRT does not load it."""
    runtime = trt.Runtime(logger)
    if job.plugin_in_plan:
        runtime.engine_host_code_allowed = True  # the plan carries a library, which is ours
    with mapped(path) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise UserError(f"TensorRT {job.version} does not load the engine of {job.component} that was built here.")
    return engine


def make_logger(trt: Any, heard: list[str]) -> Any:
    """A logger that keeps errors for the one sentence and drops the rest."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                heard.append(one_line(message))

    return Logger()


def _monitor(trt: Any, progress: Progress | None) -> Any:
    """Passes TensorRT's progress on, and can stop the build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = threading.Event()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not self.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 1))

        def _tell(self, phase_name: str, step: int) -> None:
            if progress:
                progress(phase_name, step, self._steps.get(phase_name, 1))

    return Monitor()


def _interruptible(build: Callable[[], Any], monitor: Any) -> Any:
    """Run `build` beside the main thread, which alone hears Ctrl-C while TensorRT computes."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(build)
        try:
            return running.result()
        except BaseException:
            monitor.cancelled.set()
            raise


def _advice(heard: list[str]) -> str:
    text = " ".join(heard).lower()
    if "memory" in text:
        return "free memory on this machine, or give a smaller --resolution or --batch."
    if "refit" in text:
        return "leave out --refit."
    return "see the message, or build with --builder trtexec for its whole log."


def one_line(text: str) -> str:
    """TensorRT's message as part of a sentence."""
    return " ".join(text.split()).rstrip(".")[:300]
