"""The default build, end to end: what it writes, that it resumes and repeats, what it refuses once under way."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from artifact.eviction import BUILDS
from artifact.manifest import Artifact
from engines.external import pieces
from passes.verify_tensorrt import objection
from tests.compile.commands import SMALL, compiled, onnx_files, refused, start
from tests.passes.nodewise import disagreements, svdq_nodes
from tests.passes.plugin_nodes import attributes, constants, unpacked


def test_every_graph_passes_the_checker_opens_in_plain_onnxruntime_and_names_no_machine(
    built: Path, built_unet: Path
) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    dit, unet = (sorted(p for p in a.glob("*/*.onnx") if ".trt." not in p.name) for a in (built, built_unet))
    assert len(dit) == 7  # five components in 16 bits, the transformer in two presets more
    assert len(unet) == 5  # four components in 16 bits, the UNet in one preset more
    for path in (*dit, *unet):
        onnx.checker.check_model(str(path), full_check=True)
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        text = path.read_bytes()
        for word in (str(Path.cwd()), str(Path.home()), "site-packages", ".py", "/tmp"):
            assert word.encode() not in text, f"{path.name} holds {word}"


def test_every_fused_node_equals_the_oracle(built: Path, built_unet: Path) -> None:
    graphs = ("transformer/svdq-int4.onnx", "transformer/int4-rtn.onnx")
    for path in (*(built / name for name in graphs), built_unet / "unet/svdq-int4.onnx"):
        model = ir.load(path)
        assert len(svdq_nodes(model)) > 20
        for name, wrong, worst in disagreements(model, rows=9):
            assert wrong == 0, f"{path} {name}: {wrong} elements beyond the bound, the worst at {worst:.2f} of it"


def test_what_tensorrt_parses_is_the_portable_form_packed_and_shares_its_data(built: Path, built_unet: Path) -> None:
    for root, denoiser, presets in (
        (built, "transformer", ("svdq-int4", "int4-rtn")),
        (built_unet, "unet", ("svdq-int4",)),
    ):
        artifact = Artifact.open(root)
        for component, row in artifact.manifest["components"].items():
            assert set(row["tensorrt"]) == set(row["models"])
            for preset in row["models"]:
                path, portable = artifact.tensorrt(component, preset), artifact.model(component, preset)
                assert objection(ir.load(path)) is None
                assert (path == portable) == (component != denoiser or preset not in presets)
        for preset in presets:
            path, portable = artifact.tensorrt(denoiser, preset), artifact.model(denoiser, preset)
            assert {p.name for p in path.parent.glob(f"{path.name}*")} <= {
                Path(f).name for f in artifact.manifest["files"]
            }
            onnx.checker.check_model(str(path), full_check=True)
            before = {n.name: n for n in svdq_nodes(ir.load(portable))}
            for node in svdq_nodes(ir.load(path)):
                given = attributes(node)
                found = unpacked(constants(node), given["n"], given["k"], given["group_size"])
                for name, array in constants(before.pop(node.name)).items():
                    assert (found[name] == array.astype(found[name].dtype)).all(), f"{node.name} {name}"
            assert not before
            kept = [p for p in pieces(path) if p.file == portable.with_name(f"{portable.name}.data")]
            assert kept and set(kept) < pieces(portable)


def test_what_stays_in_16_bits_is_what_the_family_says(built: Path) -> None:
    model = ir.load(built / "transformer" / "svdq-int4.onnx")
    kept = {n for n in model.graph.initializers if n.endswith(".weight") and "norm_q" not in n and "norm_k" not in n}
    assert {n for n in kept if "norm_added" not in n} == {
        "x_embedder.weight", "context_embedder.weight", "norm_out.linear.weight", "proj_out.weight",
        *(f"time_text_embed.{a}_embedder.linear_{i}.weight" for a in ("timestep", "text") for i in (1, 2)),
    }  # fmt: skip


def test_the_manifest_describes_what_is_there(built: Path) -> None:
    artifact = Artifact.open(built)
    manifest = artifact.manifest
    assert manifest["presets"] == ["svdq-int4", "int4-rtn", "fp16"]
    rows = {preset: components["transformer"] for preset, components in manifest["layers"].items()}
    assert set(rows["svdq-int4"]) == set(rows["int4-rtn"])
    means = {p: sum(r["error"] for r in rows[p].values()) / len(rows[p]) for p in rows}
    assert means["svdq-int4"] < 0.8 * means["int4-rtn"]
    assert {r["scheme"] for r in rows["svdq-int4"].values()} == {"4-bit", "weight-only"}
    assert all(all(c["relative"] <= c["allowed"] == 5e-3 for c in checks) for checks in manifest["exports"].values())
    text = (built / "manifest.json").read_text()
    assert str(Path.home()) not in text and str(built.parent) not in text


def test_four_bits_with_the_branch_are_closer_to_16_bits_than_without(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    psnr = {p["name"]: p["fidelity"]["psnr_db"]["mean"] for p in report["presets"]}
    assert psnr["svdq-int4"] > psnr["int4-rtn"] + 1 and psnr["fp16"] > 50


def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    moments = random.Random(20)
    for _ in range(3):
        process = start("--out", out, "--compare", "int4-rtn", *SMALL, "--quiet")
        time.sleep(moments.uniform(4, 30))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    if (out / "manifest.json").exists():
        Artifact.open(out)  # a manifest names whole files only
    compiled(monkeypatch, "--out", out, "--compare", "int4-rtn", *SMALL, "--quiet")
    assert onnx_files(out) == onnx_files(built)
    assert not list(out.rglob("*.partial"))


def test_a_rebuild_uses_what_is_stored_and_drops_presets_that_were_not_asked_for(
    built: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    shutil.copytree(built, out)
    # A file that is written anew has another inode. Builds of other tests may add files meanwhile.
    before = {p: p.stat().st_ino for p in cache.rglob("*") if p.parent.name != BUILDS and p.is_file()}
    compiled(monkeypatch, "--out", out, "--cache", cache, *SMALL, "--verbose")
    assert before and {p: p.stat().st_ino for p in before} == before
    layers = Artifact.open(out).manifest["layers"]["svdq-int4"]["transformer"]
    stored = re.findall(r"^  (\S+): from the store$", capsys.readouterr().err, re.MULTILINE)
    assert set(stored) == set(layers) and layers
    assert not (out / "transformer" / "int4-rtn.onnx").exists()
    same = onnx_files(built)
    assert all(same[name] == data for name, data in onnx_files(out).items())


def test_a_yaml_file_says_what_flags_say_and_flags_win(
    built: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text("references: 2\ncalibration: 2\nsteps: 2\nrows: 64\npreset: int4-rtn\nquiet-is-no-key: 1\n")
    assert "quiet_is_no_key" in refused(capsys, "--config", config, "--out", tmp_path / "no")
    config.write_text(f"references: 2\ncalibration: 2\nsteps: 2\nrows: 64\npreset: int4-rtn\ncache: {cache}\n")
    out = tmp_path / "yes"
    compiled(monkeypatch, "--config", config, "--out", out, "--preset", "fp16")
    assert Artifact.open(out).manifest["presets"] == ["fp16"]


def test_a_rank_above_a_layer_s_width_names_the_layer(
    built: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, "--rank", 4096, "--out", tmp_path / "out", "--cache", cache, *SMALL)
    assert "--rank is 4096" in sentence and "blocks.0" in sentence
    sentence = refused(capsys, "--reserve-rank", 4096, "--out", tmp_path / "out", "--cache", cache, *SMALL)
    assert "--reserve-rank is 4096, but no layer has more than 192" in sentence
    assert not list((tmp_path / "out").glob("*/*.onnx"))


def test_a_preset_that_matches_no_layer_is_an_error(
    built: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import compile
    from passes.policy import Policy

    monkeypatch.setattr(
        compile.Build, "policy", lambda self, part: Policy(quantise=("nothing.*",) if part is self.denoiser else ())
    )
    sentence = refused(capsys, "--out", tmp_path / "out", "--cache", cache, *SMALL)
    assert "No layer of shapes-dit's transformer" in sentence
    assert not (tmp_path / "out" / "manifest.json").exists()


def mount(folder: Path, option: str) -> int:
    """Mount a tmpfs; 0 where that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount(folder, "size=3m"):
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written_until_there_is_room(
    built: Path,
    cache: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = small_disk / "out"
    command = ("--preset", "fp16", "--out", out, "--cache", cache, *SMALL, "--quiet")
    sentence = refused(capsys, *command)
    assert re.search(r"is full \(\d MiB free, \d+ MiB needed\)", sentence), sentence
    assert not (out / "manifest.json").exists()
    assert not [p for p in out.rglob("*") if p.name.endswith(".partial")]
    assert mount(small_disk, "remount,size=64m") == 0
    compiled(monkeypatch, *command)
    same = onnx_files(built)
    assert onnx_files(out) and all(same[name] == data for name, data in onnx_files(out).items())
