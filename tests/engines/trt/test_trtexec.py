"""trtexec: found, asked its version, given flags that it has, and read."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import targets
from engines.trt import profiles, trtexec
from engines.trt.job import Job
from engines.trt.timing import TimingCache
from engines.trt.trtexec import Files
from engines.trt.versions import Version
from tests.engines.trt.conftest import VERSIONS, command
from tests.engines.trt.small import PRESET

DATA = Path(__file__).parent / "data"
FILES = Files("m.onnx", "m.plan", "m.json", "m.cache", "libsvdq_plugin.so")
OUTPUTS = ("8.6", "10.3", "11.1")


@pytest.fixture
def job(artifact: Artifact) -> Job:
    model = artifact.tensorrt("transformer", PRESET)
    sizes = profiles.sizes_for(artifact, targets.find("agx-orin"))
    shapes = profiles.profile(artifact, "transformer", model, sizes)
    cache = TimingCache.of(artifact.root, 87, Version(10, 3))
    return Job("transformer", PRESET, model, 87, Version(10, 3), shapes, cache, Path("libsvdq_plugin.so"))


def known(version: str) -> set[str]:
    return set((DATA / f"flags-{version}.txt").read_text(encoding="utf-8").split())


def flags(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_flag_is_one_that_the_version_has(job: Job, version: str) -> None:
    asked = replace(
        job,
        version=Version.parse(version),
        refit=True,
        plugin_in_plan=True,
        weight_streaming=not version.startswith("8"),
    )
    assert flags(trtexec.build_arguments(asked, FILES)) <= known(version)
    words = trtexec.benchmark_arguments(
        asked.version,
        Path("m.plan"),
        Path("lib.so"),
        {"x": (1, 64, 128)},
        FILES,
        5,
        "50%" if version[0] != "8" else None,
    )
    assert flags(words) <= known(version)


def test_a_flag_table_is_no_rubber_stamp() -> None:
    assert "--stronglyTyped" not in known("8.6.1") and "--buildOnly" not in known("10.3.0")
    assert not {"--fp16", "--precisionConstraints", "--layerPrecisions"} & known("11.1.0")
    assert all(80 < len(known(v)) < 140 for v in VERSIONS)


def test_types_are_kept_by_each_version_s_own_means(job: Job) -> None:
    assert trtexec.typing_flags(job) == ["--stronglyTyped"]
    assert trtexec.typing_flags(replace(job, version=Version(11, 1))) == []
    kept = "square:fp32,to_float:fp32"
    assert trtexec.typing_flags(replace(job, version=Version(8, 6, 1))) == [
        "--fp16", "--precisionConstraints=prefer", f"--layerPrecisions={kept}", f"--layerOutputTypes={kept}",
    ]  # fmt: skip


def test_a_graph_that_tensorrt_8_would_misread_is_refused_for_it(job: Job, tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, 1])
    axes = numpy_helper.from_array(np.array([1]), "axes")
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean")]
    path = tmp_path / "mean.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [axes])), str(path))
    mean = replace(job, model=path, profile={}, version=Version(8, 6, 1))
    with pytest.raises(UserError, match="TensorRT 8.6 misreads 1 nodes of transformer, the first is 'mean'"):
        trtexec.build_arguments(mean, FILES)
    assert trtexec.build_arguments(replace(mean, version=Version(10, 3)), FILES)
    nodes[0] = helper.make_node("ReduceMean", ["x"], ["y"], "mean", axes=[1])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), str(path))
    assert trtexec.build_arguments(mean, FILES)


def test_the_library_is_loaded_dynamically_and_only_where_there_are_four_bit_layers(job: Job) -> None:
    assert "--dynamicPlugins=libsvdq_plugin.so" in trtexec.build_arguments(job, FILES)
    assert "--dynamicPlugins" not in flags(trtexec.build_arguments(job, replace(FILES, plugin=None)))
    in_plan = trtexec.build_arguments(replace(job, plugin_in_plan=True), FILES)
    assert {"--versionCompatible", "--setPluginsToSerialize=libsvdq_plugin.so"} <= set(in_plan)


def test_a_run_leaves_out_what_tensorrt_11_does_by_itself() -> None:
    given: dict[str, Any] = {"plan": Path("m.plan"), "plugin": None, "shapes": {}, "out": FILES, "seconds": 5}
    ten = trtexec.benchmark_arguments(Version(10, 3), **given)
    eleven = trtexec.benchmark_arguments(Version(11, 1), **given)
    assert set(ten) - set(eleven) == {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"}


@pytest.mark.parametrize("version", ["8.5.2", "8.4.1", "10.0.1", "10.2.0", "9.3.0"])
def test_other_versions_are_refused(job: Job, version: str) -> None:
    with pytest.raises(UserError, match=f"TensorRT {version} is not supported: use 8.6, or 10.3 or later"):
        trtexec.build_arguments(replace(job, version=Version.parse(version)), FILES)


def test_it_is_found_on_path_then_below_a_root_then_where_jetpack_puts_it(tmp_path: Path) -> None:
    here = {}
    for place in ("path", "root/bin", "jetpack"):
        (tmp_path / place).mkdir(parents=True)
        here[place] = command(tmp_path / place, "10.3.0")
    environment = {"PATH": str(tmp_path / "path"), "TRT_ROOT": str(tmp_path / "root")}
    assert trtexec.find(environment, here["jetpack"]) == here["path"]
    here["path"].chmod(stat.S_IRUSR)
    assert trtexec.find(environment, here["jetpack"]) == here["root/bin"]
    assert trtexec.find({"PATH": ""}, here["jetpack"]) == here["jetpack"]
    assert trtexec.find({"PATH": ""}, tmp_path / "nowhere") is None


def test_without_one_the_sentence_says_how_to_get_it(bare: None) -> None:
    with pytest.raises(UserError, match="apt-get install tensorrt.*tar file.*NVIDIA/TensorRT on GitHub.*TRT_ROOT"):
        trtexec.require()


@pytest.mark.parametrize("version", VERSIONS)
def test_it_says_its_version(tmp_path: Path, version: str) -> None:
    assert str(trtexec.version(command(tmp_path, version))) == version


def test_one_that_does_not_run_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "trtexec"
    broken.write_text("#!/bin/sh\necho 'libnvinfer.so.10: cannot open shared object file' >&2\nexit 127\n", "utf-8")
    broken.chmod(0o755)
    with pytest.raises(UserError, match=r"does not say which TensorRT it is of \(libnvinfer.so.10: cannot open"):
        trtexec.version(broken)
    broken.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(UserError, match="does not run"):
        trtexec.version(broken)


@pytest.mark.parametrize("version", OUTPUTS)
def test_times_profile_and_summary_of_three_versions_are_read(version: str) -> None:
    def text(kind: str, end: str = "json") -> str:
        return (DATA / f"{kind}-{version}.{end}").read_text(encoding="utf-8")

    times = trtexec.read_times(DATA / f"times-{version}.json")
    first = {"8.6": 2.0, "10.3": 1.5, "11.1": 1.25}[version]
    assert times["compute_ms"] == pytest.approx([first + 0.01 * i for i in range(20)])
    transfers = 0.0 if version == "11.1" else 0.1
    assert times["latency_ms"] == pytest.approx([first + 0.01 * i + transfers for i in range(20)])
    profile = trtexec.read_profile(text("profile"))
    assert [r["name"] for r in profile][0] == "ff.net.0.proj" and profile[0]["percent"] == 50
    assert [r["average_ms"] for r in profile] == [1.0, 0.5, 0.5]
    assert (profile[0]["median_ms"] is None) == (version == "8.6")
    summary = trtexec.read_summary(text("trtexec", "log"))
    assert summary["throughput_qps"] == 100.5 and summary["gpu"]["min"] == first
    assert set(summary["gpu"]) == {"min", "max", "mean", "median", "p50", "p90", "p99"}
    assert summary["warnings"] == ["GPU compute time is unstable, with coefficient of variance = 3.2%."]


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"computeMs": 1}]', '[{"computeMs": "x", "latencyMs": 1}]', "[1]"])
def test_damaged_times_are_one_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="times.json (is not what trtexec --exportTimes writes|holds no inference)"):
        trtexec.read_times(file)


@pytest.mark.parametrize("text", ["", '[{"name": "a"}]', "[1]", '[{"count": 3}, {"name": "a", "averageMs": "x"}]'])
def test_a_damaged_profile_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="trtexec's layer profile cannot be read"):
        trtexec.read_profile(text)


def test_percentiles_are_those_of_the_sorted_times() -> None:
    found = trtexec.percentiles([float(i) for i in reversed(range(1, 101))])
    assert found == {"p50": 50.5, "p90": 91.0, "p99": 100.0, "mean": 50.5}
    assert trtexec.percentiles([2.0])["p99"] == 2.0


def test_the_first_error_stands_in_the_sentence() -> None:
    log = "[11/21-10:00:00] [W] x\n[11/21-10:00:00] [E] first,  with spaces.\n[11/21-10:00:00] [E] second\n"
    assert trtexec.failure(1, log) == "first, with spaces"
    assert re.match(r"exit code 3: no output", trtexec.failure(3, "\n"))
    assert "SIGKILL, as for want of memory" in trtexec.failure(-9, log)
