"""The script for a device without our Python, run with bash and the stand-in of trtexec."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifact.errors import UserError
from artifact.manifest import Artifact
from engines import targets
from engines.trt import machine, plan, trtexec
from engines.trt.build import build_engines
from engines.trt.job import Options
from engines.trt.versions import Version
from tests.engines.trt.conftest import VERSIONS, command
from tests.engines.trt.small import PRESET

ORIN = targets.find("agx-orin")


@pytest.fixture
def script(artifact: Artifact, library: Path, bare: None) -> Path:
    """Written on a machine without a GPU, with both of the plugin's libraries beside it."""
    path = build_engines(artifact, PRESET, ORIN, library=library, script_only=True, say=lambda s: None).script
    shutil.copy(library, artifact.root / "plugin/sm87/libsvdq_plugin_trt8.so")
    return path


def run(script: Path, tool: Path | None, fault: str = "", sm: str = "8.7") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STAND_IN_FAULT": fault, "STAND_IN_SM": sm, "TRTEXEC": str(tool or "")}
    return subprocess.run([str(script)], env=environment, capture_output=True, text=True, check=False, cwd="/")


def left(artifact: Artifact) -> set[str]:
    return {p.name for p in (artifact.root / "engines").iterdir() if ".plan" in p.name or "partial" in p.name}


@pytest.mark.parametrize("version", VERSIONS)
def test_it_builds_engines_that_are_found_by_their_records(
    artifact: Artifact, script: Path, tmp_path: Path, version: str
) -> None:
    done = run(script, command(tmp_path, version))
    assert done.returncode == 0, done.stderr
    for component in ("text_encoder", "transformer", "vae_decoder"):
        found = plan.find(artifact, component, PRESET, 87, Version.parse(version))
        assert found.metadata["builder"] == "trtexec" and found.metadata["tensorrt"] == version
        assert (found.metadata["plugin_sha256"] is None) == (component != "transformer")
        assert found.layers.is_file()
    again = run(script, command(tmp_path, version), "error")
    assert again.returncode == 0 and again.stdout.count("is there already") == 3


def test_what_it_leaves_is_taken_over_by_python(
    artifact: Artifact, script: Path, library: Path, with_tool: Callable[..., Any], tmp_path: Path
) -> None:
    assert run(script, command(tmp_path, "10.3.0")).returncode == 0
    with_tool("10.3.0")
    said: list[str] = []
    built = build_engines(artifact, PRESET, ORIN, library=library, say=said.append)
    assert sum("is there already" in s for s in said) == 3 and len(built.plans) == 3
    built.plans[0].path.unlink()
    said.clear()
    build_engines(artifact, PRESET, ORIN, library=library, say=said.append)
    assert not any("warning" in s for s in said)  # its timing cache fits


@pytest.mark.parametrize(
    ("fault", "sm", "sentence"),
    [
        ("error", "8.7", "error: trtexec failed: .*no tactic"),
        ("unfused", "8.7", "error: 7 layers must run in the plugin and 6 do"),
        ("", "8.9", "error: This GPU is not sm_87"),
    ],
)
def test_a_failure_is_one_line_exit_code_2_and_no_engine(
    artifact: Artifact, script: Path, tmp_path: Path, fault: str, sm: str, sentence: str
) -> None:
    done = run(script, command(tmp_path, "10.3.0"), fault, sm)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert re.match(sentence, line), line
    assert not any("transformer" in n or "partial" in n for n in left(artifact))


def test_a_timing_cache_that_trtexec_refuses_is_thrown_away(artifact: Artifact, script: Path, tmp_path: Path) -> None:
    cache = artifact.root / "engines/timing.sm87.trt10.3.0.cache"
    cache.write_bytes(b"garbage")
    done = run(script, command(tmp_path, "10.3.0"), "cache")
    assert done.returncode == 0 and done.stderr.startswith("warning: the timing cache")


def test_without_trtexec_or_the_library_it_says_what_to_do(artifact: Artifact, script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path / "nowhere")
    assert done.returncode == 2 and "There is no trtexec" in done.stderr
    (artifact.root / "plugin/sm87/libsvdq_plugin.so").unlink()
    done = run(script, command(tmp_path, "10.3.0"))
    assert done.returncode == 2 and "There is no plugin/sm87/libsvdq_plugin.so" in done.stderr
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\necho "&&&& RUNNING TensorRT.trtexec [TensorRT v8502] #"\n', encoding="utf-8")
    old.chmod(0o755)
    done = run(script, old)
    assert done.returncode == 2 and "TensorRT 8.5.2 is not supported" in done.stderr


def test_leftovers_of_a_killed_run_go_at_the_next(artifact: Artifact, script: Path, tmp_path: Path) -> None:
    (artifact.root / "engines/transformer.svdq-int4.sm87.trt10.3.plan.123.partial").write_bytes(b"half")
    assert run(script, command(tmp_path, "10.3.0")).returncode == 0
    assert not any("partial" in n for n in left(artifact))


def test_weight_streaming_is_refused_for_tensorrt_8(
    artifact: Artifact, library: Path, bare: None, tmp_path: Path
) -> None:
    options = Options(weight_streaming=True)
    script = build_engines(artifact, PRESET, ORIN, options=options, library=library, say=lambda s: None).script
    shutil.copy(library, artifact.root / "plugin/sm87/libsvdq_plugin_trt8.so")
    done = run(script, command(tmp_path, "8.6.1"))
    assert done.returncode == 2 and "has no weight streaming" in done.stderr
    assert run(script, command(tmp_path, "11.1.0")).returncode == 0


def test_an_engine_to_be_refitted_is_refused_by_the_version_that_loses_biases(
    artifact: Artifact, library: Path, bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(refit=True)
    built = build_engines(artifact, PRESET, ORIN, library=library, options=options, say=lambda s: None)
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\necho '[TensorRT v110300]'\n", encoding="utf-8")
    tool.chmod(0o755)
    done = run(built.script, tool)
    assert done.returncode == 2 and "TensorRT 11.3.0 can lose a bias" in done.stderr
    assert run(built.script, command(tmp_path, "11.1.0")).returncode == 0


def test_its_commands_are_those_of_the_python_builder(
    artifact: Artifact, library: Path, script: Path, with_tool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tool("10.3.0")
    seen: list[list[str]] = []
    here = trtexec.run

    def spied(words: Any, timeout: float | None = None) -> tuple[int, str]:
        seen.append(list(words[1:]))
        return here(words, timeout)

    monkeypatch.setattr(trtexec, "run", spied)
    monkeypatch.setattr(machine, "sm", lambda: 87)
    build_engines(artifact, PRESET, ORIN, library=library, say=lambda s: None)
    text = script.read_text(encoding="utf-8")
    for words in seen:
        for word in words:
            name, _, value = word.partition("=")
            if not value.startswith("/"):
                assert word in text, word
            assert name in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_component_name_cannot_run_commands(artifact: Artifact, library: Path, bare: None, tmp_path: Path) -> None:
    components = artifact.manifest["components"]
    components["vae; touch owned #"] = components.pop("vae_decoder")
    script = build_engines(artifact, PRESET, ORIN, library=library, say=lambda s: None).script
    run(script, command(tmp_path, "10.3.0"))
    assert not (artifact.root / "owned").exists() and not (tmp_path / "owned").exists()


def test_versions_that_no_engine_can_be_built_with_are_refused(artifact: Artifact) -> None:
    with pytest.raises(UserError, match="TensorRT 9.3.0 is not supported"):
        trtexec.check_version(Version(9, 3))
