"""Building engines on the stand-ins: both builders, every version, every fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifact import manifest
from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import targets
from engines.trt import plan
from engines.trt.build import Built, build_engines
from engines.trt.job import Options
from engines.trt.versions import Version
from plugins.errors import PluginError
from tests.engines.trt.conftest import PYTHON_VERSIONS, VERSIONS
from tests.engines.trt.small import PRESET

ROOT = Path(__file__).parents[3]
ORIN = targets.find("agx-orin")
Put = Callable[..., Any]


def build(artifact: Artifact, library: Path | None, **given: Any) -> Built:
    said = given.setdefault("say", lambda text: None)
    assert callable(said)
    return build_engines(artifact, PRESET, ORIN, library=library, **given)


def files(artifact: Artifact) -> set[str]:
    return {p.name for p in (artifact.root / "engines").iterdir() if not p.name.startswith(".lock")}


def expected(version: str, components: tuple[str, ...] = ("text_encoder", "transformer", "vae_decoder")) -> set[str]:
    short = Version.parse(version).short
    names = {f"{c}.{PRESET}.sm87.trt{short}" for c in components}
    return {n + end for n in names for end in (".plan", ".plan.json", ".layers.json")}


def check_records(artifact: Artifact, built: Built, version: str, builder: str) -> None:
    assert len(built.plans) == 3 and not built.skipped
    for made in built.plans:
        found = plan.find(artifact, made.metadata["component"], PRESET)
        assert found == made
        assert found.metadata["tensorrt"] == version and found.metadata["builder"] == builder
        assert (found.metadata["plugin_sha256"] is not None) == (found.metadata["component"] == "transformer")
    assert {p.activation_bytes for p in built.plans} == {5000}
    shapes = built.plans[1].metadata["profiles"][0]
    assert shapes["x"] == {"min": [1, 16, 128], "opt": [1, 64, 128], "max": [1, 64, 128]}


@pytest.mark.parametrize("version", VERSIONS)
def test_trtexec_of_every_version_takes_our_command_and_the_engines_are_found(
    artifact: Artifact, library: Path, with_tool: Put, version: str
) -> None:
    with_tool(version, process=True)
    built = build(artifact, library)
    check_records(artifact, built, version, "trtexec")
    shell = "libsvdq_plugin_trt8.so" if version == "8.6.1" else "libsvdq_plugin.so"
    assert [p.name for p in (artifact.root / "plugin/sm87").iterdir()] == [shell]
    cache = f"timing.sm87.trt{version}.cache"
    assert files(artifact) == expected(version) | {cache, f"{cache}.json", f"build-{PRESET}.sh"}


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_the_python_api_of_every_version_builds_and_the_engines_are_found(
    artifact: Artifact, library: Path, with_module: Put, version: str
) -> None:
    trt = with_module(version)
    seen: list[tuple[str, int, int]] = []
    built = build(artifact, library, progress=lambda *step: seen.append(step))
    check_records(artifact, built, version, "api")
    assert trt.made["flags"] == set()
    assert trt.made["profiles"] == [{"latent_sample": ((1, 16, 8, 8), (1, 16, 16, 16), (1, 16, 16, 16))}]
    assert trt.registered == [str(artifact.root / "plugin/sm87/libsvdq_plugin.so")]
    assert ("Timing tactics", 5, 5) in seen and ("Timing tactics", 0, 5) in seen


def test_trtexec_s_builds_are_phases_of_the_progress(artifact: Artifact, library: Path, with_tool: Put) -> None:
    with_tool("10.3.0")
    seen: list[tuple[str, int, int]] = []
    build(artifact, library, progress=lambda *step: seen.append(step))
    begun = [(f"trtexec builds {c}", n, 1) for c in ("text_encoder", "transformer", "vae_decoder") for n in (0, 1)]
    assert seen == begun


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_the_python_api_is_asked_for_what_the_user_asked_for(
    artifact: Artifact, library: Path, with_module: Put, version: str
) -> None:
    trt = with_module(version)
    built = build(artifact, library, options=Options(refit=True, weight_streaming=True, plugin_in_plan=True))
    flags = trt.BuilderFlag
    assert {flags.REFIT, flags.WEIGHT_STREAMING} <= trt.made["flags"]
    transformer = built.plans[1].metadata
    assert transformer["refittable"] and transformer["weight_streaming"] and transformer["plugin_in_plan"]
    assert not built.plans[2].metadata["plugin_in_plan"]
    (artifact.root / "plugin/sm87/libsvdq_plugin.so").unlink()
    plan.find(artifact, "transformer", PRESET)  # the engine carries it


def test_a_second_build_keeps_what_is_there_and_rebuilds_what_changed(
    artifact: Artifact, library: Path, with_tool: Put
) -> None:
    with_tool("10.3.0")
    first = build(artifact, library)
    times = [p.path.stat().st_mtime_ns for p in first.plans]
    said: list[str] = []
    again = build(artifact, library, say=said.append)
    assert [p.path.stat().st_mtime_ns for p in again.plans] == times
    assert sum("is there already" in s for s in said) == 3
    library.write_bytes(b"other kernels")
    third = build(artifact, library)
    changed = [a.path.stat().st_mtime_ns != t for a, t in zip(third.plans, times, strict=True)]
    assert changed == [False, True, False]


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_weights_that_changed_under_the_same_graph_are_built_again(
    artifact: Artifact, library: Path, with_tool: Put, version: str
) -> None:
    """Another calibration gives other numbers at the same places of the data file: the .onnx file stays as it is."""
    with_tool(version)
    first = build(artifact, library).plans[1]
    graph = artifact.tensorrt("transformer", PRESET)
    data = graph.with_name(f"{graph.name}.data")
    before = graph.read_bytes()
    data.write_bytes(bytes(b ^ 1 for b in data.read_bytes()))
    name = str(data.relative_to(artifact.root.resolve()))
    artifact.manifest["files"] |= manifest.record(artifact.root, [name])
    with pytest.raises(UserError, match="was built from another transformer graph"):
        plan.find(artifact, "transformer", PRESET)
    said: list[str] = []
    again = build(artifact, library, say=said.append).plans[1]
    assert again.metadata["onnx_sha256"] != first.metadata["onnx_sha256"] and graph.read_bytes() == before
    assert sum("is there already" in s for s in said) == 2
    assert plan.find(artifact, "transformer", PRESET) == again


def test_a_graph_that_two_presets_share_is_built_once(artifact: Artifact, library: Path, with_tool: Put) -> None:
    with_tool("10.3.0")
    build(artifact, library)
    said: list[str] = []
    build_engines(artifact, "fp16", ORIN, say=said.append)
    assert sum("taken over" in s for s in said) == 2
    taken = plan.find(artifact, "vae_decoder", "fp16")
    assert taken.metadata["preset"] == "fp16" and taken.activation_bytes == 5000


def test_weights_that_may_stream_or_be_refitted_are_flags_of_trtexec(
    artifact: Artifact, library: Path, with_tool: Put
) -> None:
    with_tool("11.1.0")
    options = Options(images=2, refit=True, weight_streaming=True, plugin_in_plan=True)
    built = build(artifact, library, options=options, sizes=[(64, 32), (32, 32)])
    shapes = built.plans[1].metadata["profiles"][0]
    assert shapes["x"] == {"min": [1, 16, 128], "opt": [2, 32, 128], "max": [2, 32, 128]}


def test_tensorrt_8_has_no_weight_streaming(artifact: Artifact, library: Path, with_tool: Put) -> None:
    with_tool("8.6.1")
    with pytest.raises(UserError, match="TensorRT 8.6.1 has no weight streaming"):
        build(artifact, library, options=Options(weight_streaming=True))


FAULTS = {
    "float32": "compute in float32 where the graph has 16 bits",
    "unfused": "4-bit layers of transformer of svdq-int4 are not in the plugin",
    "names": "names only",
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.items())
@pytest.mark.parametrize("version", VERSIONS)
def test_trtexec_s_engine_is_not_kept_where_a_layer_is_wrong(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch, version: str, fault: str,
    sentence: str,
) -> None:  # fmt: skip
    with_tool(version)
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    with pytest.raises(UserError, match=sentence):
        build(artifact, library)
    kept = ("text_encoder",) if fault != "names" else ()
    plans = {n for n in files(artifact) if ".plan" in n or "partial" in n}
    assert plans == {n for n in expected(version, kept) if ".plan" in n}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.items())
@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_the_api_s_engine_is_not_kept_where_a_layer_is_wrong(
    artifact: Artifact, library: Path, with_module: Put, version: str, fault: str, sentence: str
) -> None:
    with_module(version).fault = fault
    with pytest.raises(UserError, match=sentence):
        build(artifact, library)
    kept = ("text_encoder",) if fault != "names" else ()
    assert {n for n in files(artifact) if n.endswith(".plan")} == {
        n for n in expected(version, kept) if n.endswith(".plan")
    }


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("error", r"built no engine for text_encoder of svdq-int4 \(Error\[4\].*no tactic\)"),
        ("killed", "it was ended by SIGKILL, as for want of memory"),
        ("silent", "built no engine"),
    ],
)
def test_trtexec_s_failure_is_one_sentence_and_leaves_nothing(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch, fault: str, sentence: str
) -> None:
    with_tool("10.3.0", process=True)
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    with pytest.raises(UserError, match=sentence) as raised:
        build(artifact, library)
    assert "\n" not in str(raised.value)
    assert files(artifact) == {f"build-{PRESET}.sh", f"text_encoder.{PRESET}.log"}
    log = artifact.root / f"engines/text_encoder.{PRESET}.log"
    assert str(log) in str(raised.value) and "RUNNING TensorRT.trtexec" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("parse", r"refuses node 'node_7' \(Frobnicate\) of .*No importer registered for op: Frobnicate\."),
        ("build", "found no engine .*no implementation"),
        ("memory", "out of memory.*smaller --resolution"),
        ("load", "does not load the engine of text_encoder"),
    ],
)
def test_the_api_s_failure_is_one_sentence_and_leaves_nothing(
    artifact: Artifact, library: Path, with_module: Put, fault: str, sentence: str
) -> None:
    with_module("10.3.0").fault = fault
    with pytest.raises(UserError, match=sentence) as raised:
        build(artifact, library)
    assert "\n" not in str(raised.value)
    assert not any(".plan" in n for n in files(artifact))


def test_ctrl_c_stops_tensorrt_at_its_next_step(artifact: Artifact, library: Path, with_module: Put) -> None:
    trt = with_module("10.3.0")

    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(artifact, library, progress=interrupt)
    assert trt.made == {} and not any(".plan" in n for n in files(artifact))


def test_a_build_killed_half_way_leaves_no_plan_no_trtexec_and_the_next_one_clears_up(
    artifact: Artifact, library: Path, with_tool: Put, tmp_path: Path
) -> None:
    tool = with_tool("10.3.0", process=True)
    code = f"""if True:
        from pathlib import Path
        from artifact.manifest import Artifact
        from engines import targets
        from engines.trt import machine, trtexec, versions
        from engines.trt.build import build_engines
        machine.sm, versions.python_module, trtexec.find = lambda: 87, lambda: None, lambda *_: Path({str(tool)!r})
        build_engines(Artifact.open({str(artifact.root)!r}), {PRESET!r}, targets.find("agx-orin"),
                      library=Path({str(library)!r}))
    """
    pid = tmp_path / "pid"
    environment = {**os.environ, "STAND_IN_FAULT": "hang", "STAND_IN_PID": str(pid), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    until(lambda: pid.is_file() and pid.read_text().endswith("\n"))
    child = int(pid.read_text().split()[1])
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not alive(child))
    assert any(n.endswith(".partial") for n in files(artifact))
    assert not any(n.endswith(".plan") for n in files(artifact))
    built = build(artifact, library)
    assert len(built.plans) == 3 and not any("partial" in n for n in files(artifact))


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("builder", ["trtexec", "api"])
def test_a_timing_cache_that_does_not_fit_is_a_warning_and_is_renewed(
    artifact: Artifact, library: Path, with_tool: Put, with_module: Put, builder: str
) -> None:
    with_tool("10.3.0")
    if builder == "api":
        with_module("10.3.0")
    cache = artifact.root / "engines/timing.sm87.trt10.3.0.cache"
    cache.parent.mkdir()
    cache.write_bytes(b"garbage")
    said: list[str] = []
    built = build(artifact, library, builder=builder, say=said.append)
    assert len(built.plans) == 3
    assert [s for s in said if s.startswith("warning")] == [
        "warning: the timing cache timing.sm87.trt10.3.0.cache is ignored (it was changed, or made for another GPU or "
        "TensorRT); this build takes longer and renews it."
    ]
    assert b"garbage" not in cache.read_bytes()
    for made in built.plans:
        made.path.unlink()
    said.clear()
    build(artifact, library, builder=builder, say=said.append)
    assert not any("warning" in s for s in said)


def test_a_timing_cache_that_trtexec_refuses_is_left_out(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tool("10.3.0")
    monkeypatch.setenv("STAND_IN_FAULT", "cache")
    said: list[str] = []
    built = build(artifact, library, say=said.append)
    assert len(built.plans) == 3
    assert sum("ignored (trtexec does not take it)" in s for s in said) == 2  # the second and the third engine


@pytest.mark.parametrize("fault", ["none", "refused", "raises"])
def test_a_timing_cache_that_the_api_refuses_is_left_out(
    artifact: Artifact, library: Path, with_module: Put, fault: str
) -> None:
    with_module("11.1.0").cache_fault = fault
    said: list[str] = []
    built = build(artifact, library, say=said.append)
    assert len(built.plans) == 3
    assert sum(s.startswith("warning") for s in said) == 2


def test_without_a_gpu_the_build_says_what_it_skipped_and_writes_the_script(
    artifact: Artifact, library: Path, bare: None
) -> None:
    built = build(artifact, library)
    assert built.plans == [] and len(built.skipped) == 1
    assert "this machine has no NVIDIA GPU; run" in built.skipped[0] and ORIN.title in built.skipped[0]
    assert built.script.is_file() and (artifact.root / "plugin/sm87/libsvdq_plugin.so").is_file()


def test_on_another_gpu_or_without_tensorrt_it_says_so(
    artifact: Artifact, library: Path, orin: None, with_module: Put
) -> None:
    (sentence,) = build_engines(artifact, PRESET, targets.find("h200"), library=library, say=print).skipped
    assert "this machine's GPU is sm_87 and H200 is sm_90" in sentence
    with_module("10.3.0").__version__ = "8.6.1"
    (sentence,) = build(artifact, library).skipped
    assert "the Python package tensorrt is 8.6.1" in sentence


def test_a_device_without_compilers_uses_the_library_that_came_along(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*words: object, **more: object) -> None:
        raise PluginError("Building the plugin needs CMake.")

    monkeypatch.setattr("plugins.library.find_or_build", fails)
    with_tool("10.3.0")
    with pytest.raises(PluginError, match="needs CMake"):
        build(artifact, None)
    (artifact.root / "plugin/sm87").mkdir(parents=True)
    (artifact.root / "plugin/sm87/libsvdq_plugin.so").write_bytes(library.read_bytes())
    said: list[str] = []
    assert len(build(artifact, None, say=said.append).plans) == 3
    assert any("used as it came: none can be built here (Building the plugin needs CMake)" in s for s in said)


def test_without_a_library_the_script_is_written_and_its_absence_said(
    artifact: Artifact, bare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*words: object, **more: object) -> None:
        raise PluginError("The C++ compiler aarch64-linux-gnu-g++ for aarch64 is missing.")

    monkeypatch.setattr("plugins.library.find_or_build", fails)
    built = build(artifact, None)
    assert built.script.is_file() and len(built.skipped) == 2
    assert (
        "aarch64 is missing); put one into plugin/sm87 with `python -m plugins.build --target agx-orin`"
        in (built.skipped[1])
    )


@pytest.mark.parametrize(
    ("builder", "sentence"),
    [
        ("api", "--builder api cannot build an engine for agx-orin: the Python package tensorrt is not here"),
        ("trtexec", "There is no trtexec on PATH"),
        ("cmake", "There is no builder 'cmake'"),
    ],
)
def test_a_builder_that_is_named_must_be_there(
    artifact: Artifact, library: Path, orin: None, builder: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        build(artifact, library, builder=builder)


def test_bad_requests_are_refused_before_anything_is_written(artifact: Artifact, library: Path, orin: None) -> None:
    for target, preset, sizes, sentence in (
        ("cpu", PRESET, [], "needs no engines"),
        ("agx-orin", "svdq-int3", [], "Preset 'svdq-int3' is not in"),
        ("orin-nano", PRESET, [(64, 1024)], "engines go up to 512 pixels a side"),
        ("agx-orin", PRESET, [(60, 64)], "height of 60: small takes multiples of 8"),
    ):
        with pytest.raises(UserError, match=sentence):
            build_engines(artifact, preset, targets.find(target), sizes, library=library)
    with pytest.raises(UserError, match="There is no plugin library"):
        build(artifact, artifact.root / "nowhere.so")
    artifact.manifest["presets"].append("svdq-nvfp4")
    with pytest.raises(UserError, match="has no FP4 instructions for svdq-nvfp4.*build svdq-int4"):
        build_engines(artifact, "svdq-nvfp4", ORIN, library=library)


def test_the_command_s_exit_codes_and_sentences(
    artifact: Artifact, library: Path, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from engines.build import app

    app([str(artifact.root), "--target", "agx-orin", "--plugin", str(library)], standalone_mode=False)
    out = capsys.readouterr().out
    assert "skipped: No TensorRT engine was built: this machine has no NVIDIA GPU" in out
    assert f"engines/build-{PRESET}.sh" in out
    with pytest.raises(SystemExit) as ended:
        app([str(artifact.root), "--target", "orin-agx"], standalone_mode=False)
    assert ended.value.code == 2 and "There is no target 'orin-agx': did you mean" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        app([str(artifact.root), "--target", "agx-orin", "--resolution", "big"], standalone_mode=False)
    assert "--resolution is 'big'" in capsys.readouterr().err


def test_the_command_builds_with_bars_for_tensorrt_s_phases(
    artifact: Artifact, library: Path, with_module: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    from engines.build import _bars, app

    with_module("11.1.0")
    app([str(artifact.root), "--target", "agx-orin", "--plugin", str(library), "--batch", "2"], standalone_mode=False)
    out = capsys.readouterr().out
    assert out.count("sm87.trt11.1.plan") == 3 and "7 in the plugin" in out and "skipped" not in out
    assert plan.find(artifact, "vae_decoder", PRESET).metadata["profiles"][0]["latent_sample"]["max"][0] == 2
    bars = _bars(quiet=True)
    with bars as show:
        show("Building", 0, 2)
        show("Timing", 1, 5)
        show("Building", 2, 2)
        assert set(bars._tasks) == {"Timing"}


def test_the_layer_information_is_kept_beside_the_engine(artifact: Artifact, library: Path, with_tool: Put) -> None:
    with_tool("10.16.0")
    built = build(artifact, library)
    assert {"Layers", "Bindings"} == set(json.loads(built.plans[1].layers.read_text(encoding="utf-8")))
