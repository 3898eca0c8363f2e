"""A build of what a laptop can: no calibration, no references, no 16-bit graph, a text encoder in 4 bits."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import engines.report
from artifact.manifest import Artifact
from engines.run import app as run
from passes.verify_tensorrt import objection
from tests.compile.commands import build, refused
from tests.compile.conftest import once
from tests.passes.nodewise import disagreements, svdq_nodes
from tests.passes.plugin_nodes import attributes

SCHEMA = Path(engines.report.__file__).with_name("schema.json")
FLAGS = ("--data-free", "--references", "0", "--drop-fp16", "--text-encoder-bits", "4")


@pytest.fixture(scope="session")
def light(built: Path, shared: Path, cache: Path) -> Path:
    out = shared / "light"

    def make() -> None:
        code, stdout, stderr = build("--out", out, "--cache", cache, *FLAGS)
        assert code == 0, stderr
        assert "nothing was run" in stdout

    once(shared / "light-built", make)
    return out


def test_only_what_was_asked_for_is_written(light: Path) -> None:
    artifact = Artifact.open(light)
    assert artifact.manifest["presets"] == ["svdq-int4"] and artifact.manifest["references"] == {}
    files = {str(p.relative_to(light)) for p in light.glob("*/*.onnx")}
    assert files == {
        "text_encoder/fp16.onnx", "text_encoder_2/w4a16.onnx", "text_encoder_2/w4a16.trt.onnx",
        "transformer/svdq-int4.onnx", "transformer/svdq-int4.trt.onnx",
        "vae_decoder/fp16.onnx", "vae_encoder/fp16.onnx",
    }  # fmt: skip
    assert set(artifact.manifest["exports"]) == {"text_encoder", "vae_decoder", "vae_encoder"}
    said = [s for s in artifact.manifest["skipped"] if "not compared with torch" in s]
    assert len(said) == 2 and all("--keep-fp16" in s for s in said)
    (wide,) = [s for s in artifact.manifest["skipped"] if s not in said]
    assert wide.startswith("text_encoder stays in 16 bits: a CLIPTextModel is not quantised")


def test_the_text_encoder_has_4_bit_weights_and_stays_close_to_16_bits(light: Path, built: Path) -> None:
    artifact = Artifact.open(light)
    path = artifact.model("text_encoder_2", "svdq-int4")
    nodes = svdq_nodes(ir.load(path))
    kinds = {n.name.rsplit(".", 1)[1] for n in nodes}
    assert kinds == {"q", "k", "v", "o", "wi_0", "wi_1"}
    assert all(n.attributes["act_bits"].as_int() == 16 and len(n.inputs) == 5 for n in nodes)
    for name, wrong, worst in disagreements(ir.load(path), rows=9):
        assert wrong == 0, f"{name}: {wrong} elements beyond the bound, the worst at {worst:.2f} of it"
    packed = ir.load(artifact.tensorrt("text_encoder_2", "svdq-int4"))
    assert objection(packed) is None
    assert {attributes(n)["act_bits"] for n in svdq_nodes(packed)} == {16} and len(svdq_nodes(packed)) == len(nodes)
    ids = np.arange(2, 14, dtype=np.int64).reshape(2, 6)
    four, sixteen = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"input_ids": ids})[0]
        for p in (path, Artifact.open(built).model("text_encoder_2", "fp16"))
    )
    error = np.linalg.norm(four.astype(np.float64) - sixteen) / np.linalg.norm(sixteen.astype(np.float64))
    assert 1e-4 < error < 0.2


def test_layers_are_listed_by_component_and_their_errors_are_those_of_the_weights(light: Path, built: Path) -> None:
    rows = Artifact.open(light).manifest["layers"]["svdq-int4"]
    assert set(rows) == {"text_encoder_2", "transformer"}
    calibrated = Artifact.open(built).manifest["layers"]["svdq-int4"]["transformer"]
    assert set(rows["transformer"]) == set(calibrated)
    assert all(r["alpha"] == r["beta"] == 0 for r in rows["transformer"].values())
    assert {r["scheme"] for r in rows["text_encoder_2"].values()} == {"weight-only"}
    report = json.loads((light / "report.json").read_text())
    assert {n.split(".")[0] for n in report["layers"]["svdq-int4"]} == {"text_encoder_2", "transformer"}


def test_the_report_says_that_nothing_was_measured_and_lists_the_worst_layers_first(light: Path) -> None:
    jsonschema.validate(json.loads((light / "report.json").read_text()), json.loads(SCHEMA.read_text(encoding="utf-8")))
    page = (light / "report.html").read_text()
    assert "Nothing was measured" in page and 'id="latency"' not in page and 'id="images"' not in page
    assert 'id="where"' in page and 'id="layers"' in page and "<th data-sort>Error, %</th>" in page
    rows = Artifact.open(light).manifest["layers"]["svdq-int4"]
    worst = max(((r["error"], f"{c}.{n}") for c, rs in rows.items() for n, r in rs.items()))[1]
    assert page.index(f"<code>{worst}</code>") < min(
        page.index(f"<code>{c}.{n}</code>") for c, rs in rows.items() for n in rs if f"{c}.{n}" != worst
    )


def test_it_draws(light: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run([str(light), "--prompt", "large red circle on white", "--steps", "2", "--output", str(tmp_path / "i.png")])
    assert ended.value.code in (0, None) and (tmp_path / "i.png").is_file()


def test_what_is_solved_is_found_again_without_reading_a_weight(
    light: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.build import app
    from passes.weights import LayerLoader

    def read(self: LayerLoader) -> None:
        raise AssertionError(f"{self.layer.name} is loaded again")

    monkeypatch.setattr(LayerLoader, "__call__", read)
    app(["--out", str(tmp_path / "again"), "--cache", str(cache), *FLAGS, "--quiet"], standalone_mode=False)
    assert (tmp_path / "again/transformer/svdq-int4.onnx.data").read_bytes() == (
        light / "transformer/svdq-int4.onnx.data"
    ).read_bytes()


def test_a_dry_run_knows_what_is_there_and_how_large_it_becomes_and_writes_nothing(
    light: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.build import app
    from export.dry_run import dry_run
    from export.options import Options

    app(["--out", str(tmp_path / "out"), "--cache", str(cache), *FLAGS, "--dry-run"], standalone_mode=False)
    stdout = " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out").exists() and "nothing was written" in stdout
    assert "Memory: about" in stdout and "Skipped: text_encoder stays in 16 bits" in stdout

    options = Options(
        out=tmp_path / "out", cache=cache, data_free=True, references=0, keep_fp16=False, text_encoder_bits="4"
    )
    found = dry_run(options)
    rows = {(r.component, r.form): r for r in found.rows}
    assert found.images == (0, 0) and {s for s, peak in found.memory.items() if peak} == {"rewrite", "check"}
    assert found.skipped == [s.replace("was not", "would not be") for s in Artifact.open(light).manifest["skipped"]]
    artifact = Artifact.open(light)
    for component, form in (
        ("vae_decoder", "fp16"),
        ("vae_encoder", "fp16"),
    ):  # the rest of a small graph is no weights
        data = artifact.model(component, "svdq-int4").with_suffix(".onnx.data").stat().st_size
        assert rows[component, form].bytes_after == pytest.approx(data, rel=0.05)
    for component, form in (("transformer", "svdq-int4"), ("text_encoder_2", "w4a16")):
        row = rows[component, form]
        assert row.graph_kept and row.solved == row.layers == len(artifact.manifest["layers"]["svdq-int4"][component])
        data = artifact.model(component, "svdq-int4").with_suffix(".onnx.data").stat().st_size
        assert row.bytes_after == pytest.approx(data, rel=0.05)
    plan = dry_run(Options(out=tmp_path / "out", text_encoder_bits="4"))
    fresh = {(r.component, r.form): r for r in plan.rows}
    assert plan.samples is None and plan.images == (0, 16) and plan.seconds > found.seconds
    assert all(peak > 0 for peak in plan.memory.values()) and plan.skipped == found.skipped[:1]
    row = fresh["transformer", "svdq-int4"]
    assert not row.graph_kept and row.solved is None and row.layers > rows["transformer", "svdq-int4"].layers
    assert row.bytes_after == pytest.approx(rows["transformer", "svdq-int4"].bytes_after, rel=0.1)
    assert not (tmp_path / "out").exists()


def test_flags_that_contradict_each_other_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox\n")
    assert "leave out --prompts" in refused(capsys, "--data-free", "--prompts", prompts)
    assert "--text-encoder-bits is '8'" in refused(capsys, "--text-encoder-bits", "8")
    assert "--references is -1" in refused(capsys, "--references", "-1")
