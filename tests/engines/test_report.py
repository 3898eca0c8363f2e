"""What evaluate says agrees with the images and files that it measured; the report is complete and self-contained."""

from __future__ import annotations

import html.parser
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import engines.report
from artifact.errors import UserError
from artifact.manifest import NAME, Artifact
from artifact.sampling import sample
from engines import as_diffusers, metrics
from engines.evaluate import evaluate, prompt_score
from engines.references import References
from engines.report import memory_plot, tables
from engines.report.__main__ import app
from engines.sizes import model_bytes
from tests.engines.tiny import PROMPTS, Tiny

Measured = tuple[Path, dict[str, Any]]
SCHEMA = Path(engines.report.__file__).with_name("schema.json")


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps what a browser would fetch and what it shows."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def preset(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(p for p in results["presets"] if p["name"] == name)


def test_the_unquantised_engine_reproduces_the_references(measured: Measured) -> None:
    fidelity = preset(measured[1], "fp16")["fidelity"]
    assert fidelity["psnr_db"]["min"] > 60 and fidelity["ssim"]["min"] > 0.999
    assert min(fidelity["latent_cosine"]) > 1 - 1e-5


def test_fidelity_is_that_of_a_run_of_the_preset(flux: Tiny, measured: Measured) -> None:
    root, results = measured
    references = References.read(Artifact.open(root))
    drawn = sample(as_diffusers(root, "int4-rtn", threads=1), PROMPTS, references.noise, references.generation)
    mse = metrics.mean_squared_error(drawn.images, references.images)
    psnr = preset(results, "int4-rtn")["fidelity"]["psnr_db"]
    assert psnr["each"] == pytest.approx(metrics.psnr_db(mse).tolist(), abs=0.1)
    assert psnr["mean"] == pytest.approx(np.mean(psnr["each"])) and psnr["min"] == min(psnr["each"]) < 50
    assert psnr["std"] == pytest.approx(np.std(psnr["each"]))
    assert psnr["of_mean_mse"] == pytest.approx(float(metrics.psnr_db(mse.mean())), abs=0.1)
    cosine = preset(results, "int4-rtn")["fidelity"]["latent_cosine"]
    assert len(cosine) == 3 and max(cosine) < 1 - 1e-6


def test_the_kept_images_are_those_that_were_judged(measured: Measured) -> None:
    root, results = measured
    references = References.read(Artifact.open(root))
    entry = preset(results, "int4-rtn")
    assert sorted(entry["images"]) == [str(i) for i in results["pictured"]] == ["0", "1", "2"]
    for i, path in entry["images"].items():
        image = np.asarray(Image.open(root / path))[None]
        mse = metrics.mean_squared_error(image, references.images[int(i)][None])
        assert float(metrics.psnr_db(mse)[0]) == pytest.approx(entry["fidelity"]["psnr_db"]["each"][int(i)])


def test_at_most_sixteen_images_are_kept_evenly_spread(flux: Tiny) -> None:
    references = References.read(Artifact.open(flux.root))
    many = References(["p"] * 100, [], {}, references.noise, references.latents, references.images)
    assert len(many.pictured()) == 16 and many.pictured()[0] == 0 and many.pictured()[-1] == 99


def test_latency_memory_and_calls_are_those_of_the_pipeline(measured: Measured) -> None:
    for entry in measured[1]["presets"]:
        latency, memory = entry["latency"], entry["memory"]
        calls = {n: c["calls"] for n, c in latency["components"].items()}
        # Three steps, each with and without the prompt; both encoders for the prompt and for the negative one.
        assert calls == {"transformer": 6, "text_encoder": 2, "text_encoder_2": 2, "vae_decoder": 1}
        inside = sum(c["calls"] * c["median_ms"] for c in latency["components"].values())
        assert 0 < latency["step"]["median_ms"] <= latency["step"]["p90_ms"]
        assert latency["step"]["median_ms"] >= latency["components"]["transformer"]["median_ms"]
        assert latency["image"]["p90_ms"] > inside / 3
        assert 50e6 < memory["before_load_bytes"] < memory["peak_bytes"] < 8e9


def test_memory_over_time_names_the_components_in_both_modes(measured: Measured) -> None:
    found = measured[1]["memory_over_time"]
    assert found["preset"] == "fp16" and [m["mode"] for m in found["modes"]] == ["resident", "pipelined"]
    resident, pipelined = ([what for _, what in m["marks"]] for m in found["modes"])
    assert not any(w.startswith("free") for w in resident) and resident.count("load vae_decoder") == 1
    assert pipelined.index("free text_encoder") < pipelined.index("step 1") < pipelined.index("load vae_decoder")
    assert pipelined[-2:] == ["free vae_decoder", "image"]
    for mode in found["modes"]:
        times = [t for t, _ in mode["samples"]]
        assert times == sorted(times) and 2 <= len(times) <= 400 and times[-1] <= mode["marks"][-1][0]
        assert max(b for _, b in mode["samples"]) <= mode["peak_bytes"] > found["before_load_bytes"] > 50e6
        assert mode["probe"] == "rss"
    assert found["modes"][0]["peak_bytes"] == preset(measured[1], "fp16")["memory"]["peak_bytes"]
    text = (measured[0] / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    for mode, peak, _ in memory_plot.rows(measured[1]):
        assert mode in page.text and peak in page.text
    drawn = memory_plot.plot(measured[1])
    assert drawn is not None and b"svg" in drawn
    assert memory_plot.plot({}) is None and memory_plot.rows({}) == []  # a report of an earlier version


def test_size_counts_the_files_of_the_preset(measured: Measured) -> None:
    root, results = measured
    for entry in results["presets"]:
        sizes = entry["size"]["components"]
        assert sizes["transformer"] == (root / f"transformer/{entry['name']}.onnx").stat().st_size
        assert entry["size"]["total_bytes"] == sum(sizes.values())


def test_size_counts_the_external_data_that_a_graph_names_and_no_more(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    tensors = []
    for name, offset in (("a", 0), ("b", 400), ("c", 0)):  # c is a's data once more
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[100])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data.bin"), ("offset", str(offset)), ("length", "400")):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    graph = helper.make_graph([], "empty", [], [], tensors)
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    (tmp_path / "data.bin").write_bytes(bytes(5000))  # the rest is another preset's
    assert onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    assert model_bytes(tmp_path / "m.onnx") == (tmp_path / "m.onnx").stat().st_size + 800


def test_layer_error_and_prompt_score(measured: Measured) -> None:
    results = measured[1]
    assert preset(results, "int4-rtn")["layer_error"] == {"mean": pytest.approx(0.3), "max": 0.4, "layers": 3}
    assert preset(results, "fp16")["layer_error"] is None
    assert results["reference"]["prompt_score"]["of"] == 3
    assert results["reference"]["prompt_score"]["right"] == 0  # random weights draw no circles
    assert prompt_score(np.zeros((1, 64, 64, 3), np.uint8), ["a red fox in snow"]) is None


def test_report_json_is_valid_and_complete(measured: Measured) -> None:
    root, results = measured
    stored = json.loads((root / "report.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(results))
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))
    jsonschema.validate(stored, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert [p["name"] for p in stored["presets"]] == ["fp16", "int4-rtn"]
    assert stored["generation"]["num_inference_steps"] == 3


def test_the_schema_refuses_what_is_not_documented(measured: Measured) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for path, value in (("name", None), ("presets", []), ("surprise", 1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**measured[1], path: value}, schema)


def test_every_field_of_the_schema_is_explained(measured: Measured) -> None:
    text = (SCHEMA.parents[2] / "docs/report.md").read_text(encoding="utf-8")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    names = {*schema["properties"], *schema["$defs"]["preset"]["properties"], *schema["$defs"]["layer"]["properties"]}
    assert [n for n in sorted(names) if f"`{n}" not in text] == []


def test_the_page_fetches_nothing_and_parses(measured: Measured) -> None:
    text = (measured[0] / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    # 3 prompts with 3 images each, and 5 figures, all inside the file.
    assert page.tags.count("img") == 14 and all(f.startswith("data:image/") for f in page.fetched)
    assert not re.search(r"url\(|@import|<link|<iframe|\bfetch\(|XMLHttpRequest", text)
    assert str(measured[0]) not in text


def test_the_page_says_what_was_measured(measured: Measured) -> None:
    page = Page()
    page.feed((measured[0] / "report.html").read_text(encoding="utf-8"))
    psnr = preset(measured[1], "int4-rtn")["fidelity"]["psnr_db"]
    for said in (*PROMPTS, f"{psnr['mean']:.2f}", f"{psnr['each'][1]:.1f} dB", "30.0 %", "blocks.0.to_out",
                 "Nothing was skipped, said aloud.", "onnxruntime", measured[1]["machine"]["cpu"]):  # fmt: skip
        assert said in page.text
    assert page.text.index("blocks.0.to_out") < page.text.index("blocks.0.up") < page.text.index("blocks.0.to_q")


def test_markup_in_a_prompt_stays_text(measured: Measured, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "a"))
    results = json.loads((root / "report.json").read_text(encoding="utf-8"))
    results["prompts"][0] = "<script>alert(1)</script>"
    page = engines.report.write_page(Artifact.open(root), results).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_the_page_is_rendered_again_from_the_json(measured: Measured, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "a"))
    first = (root / "report.html").read_bytes()
    (root / "report.html").unlink()
    result = CliRunner().invoke(app, [str(root)])
    assert result.exit_code == 0 and "int4-rtn" in result.stdout
    assert (root / "report.html").read_bytes() == first


def test_what_trtexec_timed_is_on_the_page(measured: Measured, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "a"))
    times = {"p50": 1.25, "p90": 1.5, "p99": 2.0, "mean": 1.3}
    layers = [{"name": f"layer <{i}>", "average_ms": 12.0 - i, "median_ms": None, "percent": 8.5} for i in range(12)]
    engine = {
        "compute_ms": times, "latency_ms": times, "runs": 77, "throughput_qps": 700.0, "bytes": 9_200_000,
        "peak_memory": {"bytes": 314_000_000, "of": "NVML"}, "layers": 40, "plugin_layers": 31, "profile": layers,
        "warnings": ["GPU compute time is unstable"],
    }  # fmt: skip
    found = {"machine": {"cpu": "Some CPU", "date": "2026-11-29"}, "trtexec": "10.3.0", "preset": "int4-rtn",
             "seconds": 3, "engines": {"transformer": engine}}  # fmt: skip
    path = root / "report" / "benchmark.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    assert "TensorRT engines" not in (root / "report.html").read_text(encoding="utf-8")
    result = CliRunner().invoke(app, [str(root)])
    assert result.exit_code == 0, result.output
    page = Page()
    page.feed((root / "report.html").read_text(encoding="utf-8"))
    for words in ("int4-rtn on Some CPU, TensorRT 10.3.0", "1.250", "314 MB", "9.2 MB", "31 of 40", "layer <0>",
                  "transformer: GPU compute time is unstable"):  # fmt: skip
        assert words in page.text
    assert "layer <10>" not in page.text and page.open == []
    path.write_text("{}", encoding="utf-8")
    result = CliRunner().invoke(app, [str(root)])
    assert result.exit_code == 2 and "is not what engines.benchmark writes" in result.stderr


def test_a_report_that_cannot_be_read_is_refused(measured: Measured, tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "a"))
    results = json.loads((root / "report.json").read_text(encoding="utf-8"))
    cases = {"{": "is not a report", json.dumps({"format": 99}): "has format 99, this version reads 1"}
    results["presets"][0]["images"]["0"] = "../../secret.png"
    cases[json.dumps(results)] = "leads out of"
    for text, words in cases.items():
        (root / "report.json").write_text(text, encoding="utf-8")
        result = CliRunner().invoke(app, [str(root)])
        assert result.exit_code == 2 and words in result.stderr
    (root / "report.json").unlink()
    assert "holds no report.json" in CliRunner().invoke(app, [str(root)]).stderr


def test_an_artifact_without_references_cannot_be_evaluated(copied: Path) -> None:
    text = json.loads((copied / NAME).read_text(encoding="utf-8"))
    del text["references"]
    (copied / NAME).write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(UserError, match="holds no references"):
        evaluate(Artifact.open(copied))


def test_an_unknown_preset_is_refused_before_anything_runs(flux: Tiny) -> None:
    with pytest.raises(UserError, match="did you mean 'int4-rtn'"):
        evaluate(Artifact.open(flux.root), presets=["fp16", "int4-rtnn"])


def test_the_console_shows_the_same_figures(measured: Measured) -> None:
    console = Console(width=100, file=io.StringIO())
    engines.report.show(measured[1], console)
    said = console.file.getvalue()
    for _, cells in tables.overview(measured[1]):
        assert all(c.text in said for c in cells)
    assert tables.headline(measured[1])[:40] in said


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (9.2e6, "9.2 MB"), (999.7e6, "1 GB"),
                        (23.8e9, "23.8 GB"), (1.5e13, "15000 GB")]
)  # fmt: skip
def test_bytes_are_written_with_three_digits(count: float, text: str) -> None:
    assert tables.bytes_text(count) == text
