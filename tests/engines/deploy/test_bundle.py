"""What a bundle holds, and what is refused when one is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import zstandard
from typer.testing import CliRunner

from artifact import manifest as manifests
from artifact.errors import UserError
from artifact.files import sha256
from artifact.manifest import Artifact
from engines.deploy.__main__ import app
from engines.deploy.bundle import write_bundle
from engines.deploy.graphs import copy_graph
from engines.external import pieces
from engines.targets import find
from plugins.library import SOURCES
from tests.engines import tiny
from tests.engines.deploy.conftest import with_tensorrt

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def artifact(flux: tiny.Tiny, tmp_path: Path) -> Path:
    """A FLUX artifact that a test may change."""
    return with_tensorrt(flux.root, tmp_path / "artifact")


def changed(root: Path, **entries: Any) -> Artifact:
    content = json.loads((root / manifests.NAME).read_text())
    return manifests.write(root, content | entries)


def test_every_file_has_its_hash_twice(flux_bundle: Path) -> None:
    said = json.loads((flux_bundle / "manifest.json").read_text())["files"]
    sums = dict(reversed(line.split("  ")) for line in (flux_bundle / "SHA256SUMS").read_text().splitlines())
    there = {p.relative_to(flux_bundle).as_posix() for p in flux_bundle.rglob("*") if p.is_file()}
    assert set(sums) == there - {"SHA256SUMS"} and set(said) == there - {"SHA256SUMS", "manifest.json"}
    assert all(sha256(flux_bundle / name) == digest for name, digest in sums.items())
    assert all(said[name]["sha256"] == sums[name] for name in said)


def test_the_library_is_the_projects_own_files(flux_bundle: Path) -> None:
    files = [p for p in (flux_bundle / "lib").rglob("*.py") if p != flux_bundle / "lib/engines/__init__.py"]
    assert len(files) > 12
    for path in files:
        assert path.read_bytes() == (ROOT / path.relative_to(flux_bundle / "lib")).read_bytes()


def test_the_plugins_source_is_all_that_cmake_reads(flux_bundle: Path) -> None:
    there = {p.relative_to(flux_bundle / "plugin") for p in (flux_bundle / "plugin").rglob("*") if p.is_file()}
    assert {Path("CMakeLists.txt"), Path("cmake/fatbin.cmake"), Path("svdq_linear/kernels/kernels.cu")} <= there
    for name in (
        *SOURCES.glob("cmake/*"),
        *SOURCES.glob("svdq_linear/*.*"),
        *SOURCES.glob("svdq_linear/tensorrt/**/*.*"),
    ):
        if name.suffix not in (".py", ".pyc"):
            assert name.relative_to(SOURCES) in there, name
    assert not [p for p in there if p.suffix == ".py" or "on_cpu" in p.parts]


def test_the_archive_is_the_directory_and_the_same_every_time(artifact: Path, tmp_path: Path) -> None:
    first = write_bundle(Artifact.open(artifact), find("orin-nano"), out=tmp_path / "a")
    for path in first.rglob("*"):
        os.utime(path, (5, 5))
    second = write_bundle(Artifact.open(artifact), find("orin-nano"), out=tmp_path / "b")
    archives = [d.parent / "deploy-flux-orin-nano.tar.zst" for d in (first, second)]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zstandard.open(archives[0]) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        found = {}
        for member in tar:
            assert (member.uid, member.gid, member.mtime, member.uname) == (0, 0, 0, "")
            found[member.name.removeprefix("deploy-flux-orin-nano/")] = tar.extractfile(member).read()
            assert (member.mode == 0o755) == member.name.endswith((".sh", "/run.py", ".so"))
    assert found == {p.relative_to(first).as_posix(): p.read_bytes() for p in first.rglob("*") if p.is_file()}


def test_a_new_bundle_keeps_the_engines_built_from_the_old_one(artifact: Path) -> None:
    bundle = write_bundle(Artifact.open(artifact), find("orin-nano"))
    (bundle / "engines").mkdir()
    (bundle / "engines/x.plan").write_text("plan")
    (bundle / "stale").write_text("old")
    write_bundle(Artifact.open(artifact), find("orin-nano"))
    assert (bundle / "engines/x.plan").read_text() == "plan" and not (bundle / "stale").exists()
    archive = artifact / "deploy-flux-orin-nano.tar.zst"
    with zstandard.open(archive) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        assert not [m.name for m in tar if "engines/x.plan" in m.name]


def test_only_the_weights_that_a_graph_names_are_copied(tmp_path: Path) -> None:
    """Two initializers share a piece, and the file holds more than both: the other presets' weights."""
    source = tmp_path / "from"
    source.mkdir()
    payload = bytes(range(256)) * 16 + b"end!"
    (source / "shared.data").write_bytes(b"x" * 1000 + payload + b"y" * 1000)
    tensors = []
    for name in ("a", "b", "c"):
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.UINT8, dims=[4100 if name != "c" else 100])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": "shared.data", "offset": "1000" if name != "c" else "1100", "length": str(tensor.dims[0])}
        for key, value in where.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        tensors.append(tensor)
    graph = onnx.GraphProto(name="g", initializer=tensors)
    onnx.save(onnx.ModelProto(ir_version=10, graph=graph), str(source / "m.onnx"))
    data, copy = copy_graph(source / "m.onnx", tmp_path / "to" / "m.onnx")
    assert data.stat().st_size == 4352 + 100 and len(pieces(copy)) == 2
    read = {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in onnx.load(str(copy)).graph.initializer}
    assert read == {"a": payload, "b": payload, "c": payload[100:200]}
    (source / "shared.data").write_bytes(b"x" * 1050)
    with pytest.raises(UserError, match="ends 4050 bytes early"):
        copy_graph(source / "m.onnx", tmp_path / "again" / "m.onnx")
    assert not list((tmp_path / "again").iterdir())


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("cpu", {}, "nothing to deploy to the target cpu"),
        ("rtx-40", {}, "A bundle is for a Jetson, and rtx-40 is none"),
        ("orin-nano", {"jetpack": "7.1"}, "JetPack 7.1 does not run on Jetson Orin Nano"),
        ("thor-t5000", {"jetpack": "6.2"}, "JetPack 6.2 does not run on Jetson Thor"),
        ("orin-nano", {"jetpack": "5.1"}, "There is no --jetpack '5.1' for orin-nano"),
        ("orin-nano", {"preset": "fp61"}, "did you mean 'fp16'"),
    ],
)
def test_what_cannot_be_bundled_is_refused(artifact: Path, target: str, options: dict[str, str], words: str) -> None:
    before = sorted(artifact.rglob("*"))
    with pytest.raises(UserError, match=words):
        write_bundle(Artifact.open(artifact), find(target), **options)
    assert sorted(artifact.rglob("*")) == before


def test_an_artifact_that_run_py_could_not_carry_out_is_refused(artifact: Path) -> None:
    content = json.loads((artifact / manifests.NAME).read_text())
    orin, generation = find("orin-nano"), content["generation"]

    def refused(**entries: Any) -> str:
        with pytest.raises(UserError) as raised:
            write_bundle(changed(artifact, **{**content, **entries}), orin)
        assert not (artifact / "deploy").exists() and not list(artifact.glob("*.partial"))
        return str(raised.value)

    assert "cannot carry out guidance_rescale" in refused(generation=generation | {"guidance_rescale": 0.7})
    assert "cannot run a FluxControlPipeline" in refused(pipeline="FluxControlPipeline")
    without = {n: {k: v for k, v in c.items() if k != "tensorrt"} for n, c in content["components"].items()}
    assert "has no form of text_encoder for fp16 that TensorRT parses" in refused(components=without)
    scheduler = artifact / "scheduler/scheduler_config.json"
    text = scheduler.read_text().replace("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
    scheduler.write_text(text)
    assert "put FlowMatchEulerDiscreteScheduler into" in refused()


def test_a_full_disk_leaves_what_was_there(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(Artifact.open(artifact), find("orin-nano"))
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="is full"):
        write_bundle(Artifact.open(artifact), find("orin-nano"))
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before
    assert not list(artifact.glob("*.partial"))


def test_references_that_the_device_could_not_match_are_left_out_aloud(artifact: Path) -> None:
    content = json.loads((artifact / manifests.NAME).read_text())
    more = content["generation"] | {"num_inference_steps": 4}
    said = json.loads(
        (write_bundle(changed(artifact, generation=more), find("orin-nano")) / "manifest.json").read_text()
    )
    assert said["references"] is None and "in 3 steps and the bundle draws 32 x 32 in 4" in said["skipped"][0]
    said = json.loads(
        (write_bundle(changed(artifact, references=None), find("orin-nano")) / "manifest.json").read_text()
    )
    assert said["references"] is None and "built without them" in said["skipped"][0]


def test_the_command_says_what_it_wrote_and_what_the_device_does(artifact: Path) -> None:
    done = CliRunner().invoke(app, [str(artifact), "--target", "orin-nano"])
    assert done.exit_code == 0, done.stderr
    assert "fp16 for orin-nano, JetPack 6.2" in done.stdout and "deploy-flux-orin-nano.tar.zst" in done.stdout
    done = CliRunner().invoke(app, [str(artifact), "--target", "cpu"])
    assert done.exit_code == 2 and done.stderr.startswith("error: There is nothing to deploy")
    done = CliRunner().invoke(app, [str(artifact), "--target", "orin-nano", "--out", "/proc/none"])
    assert done.exit_code == 2 and "Cannot write" in done.stderr and done.stderr.count("\n") == 1


def test_the_readme_names_what_is_there(flux_bundle: Path) -> None:
    text = (flux_bundle / "README.md").read_text()
    assert "@" not in text
    for name in ("build.sh", "run.py", "models/", "plugin/", "steps.json", "references/", "example/", "lib/"):
        assert f"`{name}`" in text and (flux_bundle / name).exists()


def test_older_pythons_are_told_so(flux_bundle: Path) -> None:
    """run.py must be read by them: no syntax after Python 3.6."""
    import ast

    source = (flux_bundle / "run.py").read_text()
    ast.parse(source, feature_version=(3, 7))
    code = "import sys; sys.version_info = (3, 8, 10); sys.argv = ['run.py', '--prompt', 'x']\n"
    code += f"__file__ = {str(flux_bundle / 'run.py')!r}\n" + source
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "needs Python 3.10 or later" in done.stderr and done.stderr.count("\n") == 1
