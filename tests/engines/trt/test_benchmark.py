"""The benchmark command, on the stand-in of trtexec."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import targets
from engines.benchmark import PERIOD_S, RESULT, app, benchmark, show
from engines.trt import machine, plan, trtexec, versions
from engines.trt.build import build_engines
from engines.trt.job import Options
from engines.validation import trtexec_times
from tests.engines.trt.small import PRESET

ORIN = targets.find("agx-orin")
Put = Callable[..., Any]


def built(artifact: Artifact, library: Path, **options: bool) -> Artifact:
    build_engines(artifact, PRESET, ORIN, library=library, options=Options(**options), say=lambda s: None)
    return artifact


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.1.0"])
def test_every_engine_s_figures_are_in_the_table_and_in_the_json(
    artifact: Artifact, library: Path, with_tool: Put, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    with_tool(version)
    app([str(built(artifact, library).root), "--seconds", "3"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "transformer: slowest layers" in out and "ff.net.0.proj" in out
    assert "GPU compute time is unstable" in out
    content = json.loads((artifact.root / RESULT).read_text(encoding="utf-8"))
    assert content["trtexec"] == version and content["preset"] == PRESET and content["seconds"] == 3
    assert set(content["engines"]) == {"text_encoder", "transformer", "vae_decoder"}
    row = content["engines"]["transformer"]
    first = {"8.6.1": 2.0, "10.3.0": 1.5, "11.1.0": 1.25}[version]
    assert row["compute_ms"]["p50"] == pytest.approx(first + 0.095) and row["runs"] == 20
    assert row["plugin_layers"] == 2 and row["throughput_qps"] == 100.5
    assert [r["name"] for r in row["profile"]][0] == "ff.net.0.proj"


def test_the_figures_go_into_the_report_where_there_is_one(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with_tool("10.3.0")
    built(artifact, library)
    app([str(artifact.root), "--seconds", "1"], standalone_mode=False)
    assert "it has no report to put them into" in capsys.readouterr().out
    (artifact.root / "report.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("engines.report.read_report", lambda artifact: {})
    monkeypatch.setattr("engines.report.write_page", lambda artifact, results: artifact.root / "report.html")
    app([str(artifact.root), "--seconds", "1"], standalone_mode=False)
    assert capsys.readouterr().out.endswith("report.html\n")

    def lacks_jinja(artifact: Artifact, results: object) -> None:
        raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")

    monkeypatch.setattr("engines.report.write_page", lacks_jinja)
    app([str(artifact.root), "--seconds", "1"], standalone_mode=False)
    assert "jinja2 is not installed here: `python -m engines.report`" in capsys.readouterr().out


def test_it_runs_what_the_engine_was_tuned_for_with_its_library(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = with_tool("10.3.0")
    built(artifact, library, weight_streaming=True)
    seen: list[list[str]] = []
    here = trtexec.run
    monkeypatch.setattr(trtexec, "run", lambda words, timeout=None: (seen.append(list(words)), here(words))[1])
    benchmark(artifact, PRESET, tool, "transformer", 1, "50%")
    (words,) = seen
    assert f"--dynamicPlugins={artifact.root / 'plugin/sm87/libsvdq_plugin.so'}" in words
    assert "--shapes=x:1x64x128,emb:1x128" in words and "--weightStreamingBudget=50%" in words
    seen.clear()
    benchmark(artifact, PRESET, tool, "vae_decoder", 1)
    assert not any("dynamicPlugins" in word for word in seen[0])


def test_an_engine_that_carries_the_library_is_timed_with_leave_to_run_it(
    artifact: Artifact, library: Path, with_tool: Put
) -> None:
    tool = with_tool("10.3.0")
    built(artifact, library, plugin_in_plan=True)
    assert set(benchmark(artifact, PRESET, tool, seconds=1)["engines"]) == {
        "text_encoder",
        "transformer",
        "vae_decoder",
    }


def test_peak_memory_is_what_the_device_lost_meanwhile(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tool = with_tool("10.3.0")
    built(artifact, library)
    free = [1000 * 2**20]
    monkeypatch.setattr(machine, "free_bytes", lambda: ("NVML", free[0]))
    here = trtexec.run

    def takes(words: Any, timeout: float | None = None) -> tuple[int, str]:
        free[0] -= 300 * 2**20
        time.sleep(10 * PERIOD_S)
        free[0] += 200 * 2**20
        return here(words)

    monkeypatch.setattr(trtexec, "run", takes)
    results = benchmark(artifact, PRESET, tool, "transformer", 1)
    assert results["engines"]["transformer"]["peak_memory"] == {"bytes": 300 * 2**20, "of": "NVML"}
    show(results)
    assert " 300 " in capsys.readouterr().out
    monkeypatch.setattr(machine, "free_bytes", lambda: None)
    assert benchmark(artifact, PRESET, tool, "transformer", 1)["engines"]["transformer"]["peak_memory"] is None


NVML = """
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** device) { return i != 0; }
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* info) { info[0] = 9; info[1] = 7; info[2] = 2; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_free_memory_is_nvml_s_and_on_a_jetson_the_system_s(tmp_path: Path) -> None:
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "libnvml.so")]
    subprocess.run(command, input=NVML, text=True, check=True)
    assert machine.free_bytes(tmp_path, str(tmp_path / "libnvml.so")) == ("NVML", 7)
    assert machine.free_bytes(tmp_path, str(tmp_path / "none.so")) is None
    for file, text in (("etc/nv_tegra_release", "# R36"), ("proc/meminfo", "MemAvailable:    2048 kB\n")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert machine.free_bytes(tmp_path) == ("MemAvailable", 2048 * 1024)


def test_what_cannot_be_timed_is_one_sentence(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = with_tool("10.3.0")
    with pytest.raises(UserError, match="has no engine of text_encoder"):
        benchmark(artifact, PRESET, tool)
    built(artifact, library)
    with pytest.raises(UserError, match="has no component 'unet': it has text_encoder, transformer, vae_decoder"):
        benchmark(artifact, PRESET, tool, "unet")
    with pytest.raises(UserError, match="was not built with --weight-streaming"):
        benchmark(artifact, PRESET, tool, weight_budget="50%")
    monkeypatch.setenv("STAND_IN_FAULT", "error")
    with pytest.raises(UserError, match=r"does not run text_encoder.*Error Code 1: Serialization \(version tag\)"):
        benchmark(artifact, PRESET, tool)
    assert not (artifact.root / RESULT).exists()


def test_without_trtexec_the_command_says_how_to_get_it(
    artifact: Artifact, bare: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app([str(artifact.root)], standalone_mode=False)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: There is no trtexec on PATH") and err.count("\n") == 1


def test_the_validator_finds_its_times_beside_the_engines(
    artifact: Artifact, library: Path, with_tool: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = with_tool("10.3.0")
    monkeypatch.setattr(versions, "installed", lambda: versions.Version.parse("10.3.0"))
    built(artifact, library)
    assert trtexec_times.beside_engines(artifact, PRESET) == {}
    benchmark(artifact, PRESET, tool, "transformer", 1)
    found = trtexec_times.beside_engines(artifact, PRESET)
    assert list(found) == ["transformer"]
    assert trtexec_times.read(found["transformer"])["compute_p50_ms"] == pytest.approx(1.595)
    record = plan.sidecar(plan.find(artifact, "transformer", PRESET).path)
    later = found["transformer"].stat().st_mtime + 10
    os.utime(record, (later, later))
    assert trtexec_times.beside_engines(artifact, PRESET) == {}  # of an engine that was built again since
