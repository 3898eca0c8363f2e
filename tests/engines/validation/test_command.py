"""`python -m engines.validate` on tiny artifacts: what it prints, how it ends; a fault leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

import engines
from artifact import manifest
from artifact.errors import UserError
from artifact.manifest import NAME, Artifact
from artifact.sampling import initial_noise, sample
from engines import metrics, validate
from engines.apart import reason
from engines.validation import history, process
from tests.engines.tiny import PROMPTS, SIDE, Tiny

ROOT = Path(__file__).resolve().parent.parent.parent.parent
SCHEMA = json.loads((ROOT / "engines/validation/schema.json").read_text(encoding="utf-8"))
TIMES = json.dumps([{"latencyMs": 8.0 + 0.1 * (i % 3), "computeMs": 7.5} for i in range(20)])


def invoke(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command in this process."""
    result = CliRunner().invoke(validate.app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def ran(flux: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, str, str]]:
    """One real run with budgets that hold, as JSON."""
    root = Path(shutil.copytree(flux.root, tmp_path_factory.mktemp("validated") / "flux"))
    times = root.parent / "times.json"
    times.write_text(TIMES, encoding="utf-8")
    return root, invoke(root, "--preset", "int4-rtn", "--json", "--runs", 6, "--max-seconds", 3, "--threads", 1,
                        "--max-latency-ms", 1e7, "--min-ssim", 0, "--times", f"transformer={times}")  # fmt: skip


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[process.Run]]:
    """Stands for the process that measures; the runs that it was asked for."""

    def stand_in(image_ms: float = 100.0, peak: int = 500_000_000, talk: str = "") -> list[process.Run]:
        asked: list[process.Run] = []

        def record_apart(run: process.Run) -> dict[str, Any]:
            asked.append(run)
            print(talk, end="")
            return {
                "load_s": 0.5, "mode": "resident", "steps": 3, "images_ms": [image_ms] * 10,
                "calls_ms": {"transformer": [image_ms / 10] * 60, "vae_decoder": [1.0] * 10},
                "memory": {"probe": "rss", "before_load_bytes": 1, "peak_bytes": peak, "end_bytes": peak},
                "notes": ["3 of 9 nodes fell back."],
            }  # fmt: skip

        monkeypatch.setattr(validate, "record_apart", record_apart)
        return asked

    return stand_in


def test_json_is_all_that_is_printed_and_fits_its_schema(ran: tuple[Path, tuple[int, str, str]]) -> None:
    root, (code, out, error) = ran
    assert (code, error) == (0, "")
    result = json.loads(out)
    jsonschema.Draft202012Validator(SCHEMA).validate(result)
    assert [json.loads(line) for line in (root / history.NAME).read_text(encoding="utf-8").splitlines()] == [result]
    assert result["regression"] is None and result["exit_code"] == 0
    assert [b["option"] for b in result["budgets"]] == ["--max-latency-ms", "--min-ssim"]


def test_what_is_measured_fits_together(ran: tuple[Path, tuple[int, str, str]]) -> None:
    root, (_, out, _) = ran
    result = json.loads(out)
    timed, memory = result["latency"], result["memory"]
    calls = {n: c["calls"] for n, c in timed["components"].items()}
    assert calls == {"transformer": 6, "text_encoder": 2, "text_encoder_2": 2, "vae_decoder": 1}
    assert timed["images"] >= 1 and timed["step"]["calls"] == 3 and timed["image"]["calls"] == 1
    inside = sum(c["calls"] * c["p50_ms"] for c in timed["components"].values())
    assert timed["image"]["p99_ms"] > inside / 3
    assert timed["step"]["p50_ms"] >= timed["components"]["transformer"]["p50_ms"]
    assert timed["steps_per_second"] == pytest.approx(1e3 / timed["step"]["p50_ms"])
    assert timed["trtexec"]["transformer"]["p50_ms"] == pytest.approx(8.1)
    assert memory["probe"] == "rss" and 50e6 < memory["before_load_bytes"] < memory["peak_bytes"] < 8e9
    assert result["disk"]["components"]["transformer"] == (root / "transformer/int4-rtn.onnx").stat().st_size
    assert result["disk"]["total_bytes"] == sum(result["disk"]["components"].values())
    assert len(result["fidelity"]["psnr_db"]["each"]) == 3 and len(result["fidelity"]["latent_cosine"]) == 3
    assert result["fidelity"]["psnr_db"]["min"] < 60  # a quantised preset is not its reference
    assert result["settings"]["threads"] == 1 and result["generation"]["num_inference_steps"] == 3


def test_a_broken_budget_ends_with_1_and_is_named(copied: Path, canned: Any) -> None:
    canned(image_ms=812.0)
    code, out, error = invoke(copied, "--preset", "int4-rtn", "--max-latency-ms", 700, "--max-vram-mb", 500,
                              "--max-disk-mb", 0.01, "--min-psnr", 1)  # fmt: skip
    assert code == 1
    disk = json.loads((copied / history.NAME).read_text(encoding="utf-8"))["disk"]["total_bytes"] / 1e6
    lines = error.splitlines()
    assert lines[0] == "broken: latency p50 812 ms is above --max-latency-ms 700"
    assert lines[1].startswith(f"broken: disk {disk:.4f}"[:12]) and lines[1].endswith("is above --max-disk-mb 0.01")
    assert len(lines) == 2
    assert "2 of 4 budgets held" in out and out.count("BROKEN") == 2 and out.count("held") == 3


def test_budgets_that_hold_end_with_0(copied: Path, canned: Any) -> None:
    canned()
    code, out, error = invoke(copied, "--preset", "fp16", "--max-latency-ms", 100, "--min-psnr", 60,
                              "--min-latent-cosine", 0.999, "--min-ssim", 0.99)  # fmt: skip
    assert (code, error) == (0, "") and "4 of 4 budgets held" in out
    assert "note: 3 of 9 nodes fell back." in out and "history: the first run of its kind" in out


def test_the_table_shows_every_component_and_names_the_probe(copied: Path, canned: Any) -> None:
    canned()
    _, out, _ = invoke(copied, "--preset", "int4-rtn")
    for words in ("transformer", "vae_decoder", "p50", "p90", "p99", "peak memory (rss)", "500 MB", "steps/s", "PSNR",
                  "prompt score", "compared with the 16-bit references stored, 3 prompts", "no budget was given",
                  "preset int4-rtn on onnxruntime (resident)"):  # fmt: skip
        assert words in out, words


def test_quiet_prints_broken_budgets_only(copied: Path, canned: Any) -> None:
    canned()
    assert invoke(copied, "--quiet", "--max-latency-ms", 100)[:2] == (0, "")
    code, out, error = invoke(copied, "--quiet", "--max-latency-ms", 99)
    assert (code, out) == (1, "") and error == "broken: latency p50 100 ms is above --max-latency-ms 99\n"


def test_a_regression_against_the_last_run_is_shown(copied: Path, canned: Any) -> None:
    canned(image_ms=100.0)
    invoke(copied, "--preset", "fp16")
    canned(image_ms=200.0)
    invoke(copied, "--preset", "int4-rtn")  # another preset is not comparable
    canned(image_ms=130.0)
    code, out, _ = invoke(copied, "--preset", "fp16")
    assert code == 0 and "history: image is worse (100 → 130, × 1.300) against the run of" in out
    assert "mean PSNR" not in out.partition("history:")[2]
    canned(image_ms=131.0)
    assert "history: no certain change since the run of" in invoke(copied, "--preset", "fp16")[1]


def test_a_damaged_line_of_the_history_is_told_of(copied: Path, canned: Any) -> None:
    canned()
    (copied / "validation").mkdir()
    (copied / history.NAME).write_text('{"format": 1, "machine"\n', encoding="utf-8")
    code, out, _ = invoke(copied)
    assert code == 0 and "note: 1 of 1 lines of" in out and "cannot be read" in out


def test_stdout_holds_json_and_nothing_that_a_library_says(copied: Path, canned: Any) -> None:
    canned(talk="a library that talks\n")
    _, out, error = invoke(copied, "--json")
    jsonschema.validate(json.loads(out), SCHEMA)
    assert error == "a library that talks\n"


def test_own_prompts_are_compared_with_the_own_fp16_preset(flux: Tiny, copied: Path, canned: Any) -> None:
    asked = canned()
    (copied.parent / "mine.txt").write_text("a small red cross on grey\na large cyan circle on white\n", "utf-8")
    code, out, _ = invoke(copied, "--preset", "int4-rtn", "--prompts", copied.parent / "mine.txt", "--json",
                          "--threads", 1)  # fmt: skip
    found = json.loads(out)["fidelity"]
    assert code == 0 and found["compared"] == "preset fp16 of the same artifact, 2 prompts of mine.txt, seeds from 0"
    assert asked[0].prompt == "a small red cross on grey"
    words = ["a small red cross on grey", "a large cyan circle on white"]
    noise = initial_noise(flux.rule, [0, 1], SIDE, SIDE)
    drawn = [sample(engines.as_diffusers(copied, p, threads=1), words, noise, flux.generation).images
             for p in ("int4-rtn", "fp16")]  # fmt: skip
    expected = metrics.psnr_db(metrics.mean_squared_error(*drawn))
    assert found["psnr_db"]["each"] == pytest.approx(expected.tolist(), abs=0.1) and max(expected) < 99


def test_another_build_of_the_model_is_what_images_are_compared_with(flux: Tiny, copied: Path, canned: Any) -> None:
    canned()
    code, out, _ = invoke(copied, "--preset", "fp16", "--against", flux.root, "--against-preset", "fp16", "--json",
                          "--threads", 1)  # fmt: skip
    found = json.loads(out)["fidelity"]
    assert code == 0 and found["psnr_db"]["min"] == 100 and min(found["latent_cosine"]) == pytest.approx(1)
    code, out, _ = invoke(copied, "--preset", "fp16", "--against", flux.root, "--against-preset", "int4-rtn", "--json",
                          "--threads", 1)  # fmt: skip
    found = json.loads(out)["fidelity"]
    assert code == 0 and found["psnr_db"]["min"] < 60
    assert found["compared"] == "preset int4-rtn of flux, 3 prompts of the stored references, from their noise"


def never(run: process.Run) -> dict[str, Any]:
    raise AssertionError("measured before it was refused")


def refused(monkeypatch: pytest.MonkeyPatch, root: Path, *arguments: object) -> str:
    """The sentence of a run that is refused before anything is measured, and leaves the artifact as it was."""
    monkeypatch.setattr(validate, "record_apart", never)
    before = tree(root)
    code, out, error = invoke(root, *arguments)
    assert (code, out) == (2, ""), error
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert tree(root) == before
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-latency-ms", "nan"), "--max-latency-ms is nan: give a number above 0"),
        (("--max-vram-mb", "-5"), "--max-vram-mb is -5"),
        (("--min-ssim", "2"), "--min-ssim is 2: give a number from 0 to 1"),
        (("--preset", "fp61"), "did you mean 'fp16'"),
        (("--max-seconds", "nan"), "--max-seconds is nan"),
        (("--max-seconds", "0"), "--max-seconds is 0"),
        (("--times", "times.json"), "names no component: write it as"),
        (("--times", "unet=times.json"), "has no component 'unet'"),
        (("--times", "transformer=nowhere.json"), "Cannot read nowhere.json"),
        (("--preset", "int4-rtn", "--prompts", "nowhere.txt"), "Cannot read the prompts in nowhere.txt"),
        (("--backend", "tensorflow"), "no backend 'tensorflow': did you mean 'tensorrt'"),
        (("--against", "nowhere"), f"nowhere holds no {NAME}"),
    ],
)
def test_a_bad_option_is_refused_before_anything_runs(
    copied: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    assert words in refused(monkeypatch, copied, *arguments)


def test_tensorrt_without_an_engine_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tensorrt" in refused(monkeypatch, copied, "--backend", "tensorrt").lower()


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "holds no prompt"), (b"\xff\xfe", "is not UTF-8"), (b"a red fox\n", "'a red fox'")]
)
def test_prompts_that_cannot_be_judged_are_refused(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    error = refused(monkeypatch, copied, "--preset", "int4-rtn", "--prompts", tmp_path / "p.txt",
                    "--min-prompt-score", 0.5)  # fmt: skip
    assert words in error


def test_an_artifact_without_references_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((copied / NAME).read_text(encoding="utf-8"))
    del content["references"]
    (copied / NAME).write_text(json.dumps(content), encoding="utf-8")
    assert "holds no references to compare with" in refused(monkeypatch, copied)


def test_a_build_of_another_model_is_refused(flux: Tiny, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((copied / NAME).read_text(encoding="utf-8"))
    content["source"]["sha256"] = "f" * 64
    (copied / NAME).write_text(json.dumps(content), encoding="utf-8")
    assert "was built from another model" in refused(monkeypatch, copied, "--against", flux.root)


@pytest.mark.parametrize(
    "name", ["transformer/fp16.onnx", "references/tensors.safetensors", "tokenizer/tokenizer.json"]
)
def test_a_damaged_artifact_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    error = refused(monkeypatch, copied)
    assert name in error and "hash differs" in error


def test_no_artifact_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"holds no {NAME}" in refused(monkeypatch, tmp_path)


@pytest.fixture
def overflowing(copied: Path) -> Path:
    """An artifact whose image decoder gives NaN: as built, by its hashes."""
    path = copied / "vae_decoder/fp16.onnx"
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if len(i.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    onnx.save(model, path)
    content = json.loads((copied / NAME).read_text(encoding="utf-8"))
    del content["format"]
    manifest.write(copied, content | {"files": manifest.record(copied, list(content["files"]))})
    return copied


def test_nan_while_measuring_ends_with_2_and_the_other_process_own_sentence(overflowing: Path) -> None:
    before = tree(overflowing)
    code, out, error = invoke(overflowing, "--preset", "fp16", "--threads", 1)
    assert (code, out) == (2, "") and error.startswith("error: Measuring preset 'fp16' failed: Output")
    assert "'vae_decoder'" in error and "NaN or infinity" in error and error.count("\n") == 1
    assert tree(overflowing) == before


def test_nan_while_drawing_frees_the_engines(overflowing: Path, canned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    canned()
    loaded: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(engines.load(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(validate, "load", load)
    code, _, error = invoke(overflowing, "--preset", "fp16")
    assert code == 2 and "NaN or infinity" in error and not (overflowing / history.NAME).exists()
    with pytest.raises(UserError, match="was closed"):
        loaded[0].sessions["transformer"].open()


def test_a_fault_of_ours_does_not_look_like_a_broken_budget(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "record_apart", lambda run: 1 / 0)
    code, out, error = invoke(copied)
    assert (code, out) == (2, "") and "internal: ZeroDivisionError" in error and "--debug" in error
    with pytest.raises(ZeroDivisionError):
        invoke(copied, "--debug")


def test_a_history_that_cannot_be_read_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "validation").touch()
    assert "history.jsonl" in refused(monkeypatch, copied)


def test_a_history_that_cannot_be_written_costs_no_result(
    copied: Path, canned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    canned()

    def full(root: Path, result: Any) -> Path:
        raise UserError("Cannot write it.")

    monkeypatch.setattr(history, "append", full)
    code, out, _ = invoke(copied, "--max-latency-ms", 99)
    assert code == 1 and "note: This run is not in the history: Cannot write it." in out


def test_the_reason_of_a_process_that_was_killed() -> None:
    assert "memory ran out" in reason(-9, "")
    assert reason(-11, "") == "the process was ended by signal 11."
    assert reason(2, "x\nerror: Why.\n") == "Why."


def test_it_is_imported_and_refuses_in_a_sentence_without_torch(flux: Tiny) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['diffusers'] = None\n"
        "from engines.validate import app; app()"
    )
    command = [sys.executable, "-c", code, str(flux.root), "--runs", "1", "--max-seconds", "0.001"]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, env=environment)
    # The process that measures is another one, which has torch; the one that draws has not.
    assert done.returncode == 2 and done.stdout == ""
    assert "is not installed: pip install 'svdq-edge[export]'" in done.stderr and done.stderr.count("\n") == 1


def test_measuring_stops_by_the_clock_that_it_is_given(flux: Tiny) -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            self.now += 1.0
            return self.now

    run = process.Run(str(flux.root), "fp16", "onnxruntime", PROMPTS[0], 3, 7.0, threads=1)
    raw = process.record(run, Clock())
    # Every reading of this clock is a second later: an image takes one, and the fourth ends 8 s after the start.
    assert raw["images_ms"] == [1000.0] * 4
    assert {n: len(c) for n, c in raw["calls_ms"].items()} == {
        "text_encoder": 8, "text_encoder_2": 8, "transformer": 24, "vae_decoder": 4,
    }  # fmt: skip
    assert raw["mode"] == "resident" and raw["steps"] == 3 and raw["notes"] == []


def test_memory_modes_are_passed_on(copied: Path) -> None:
    code, out, _ = invoke(copied, "--preset", "fp16", "--memory", "pipelined", "--runs", 1, "--max-seconds", 0.001,
                          "--json", "--threads", 1)  # fmt: skip
    result = json.loads(out)
    assert code == 0 and result["mode"] == "pipelined" and result["latency"]["images"] == 1
    assert any("too few for a confidence interval" in n for n in result["notes"])


def test_an_artifact_opened_elsewhere_is_judged_by_the_function(flux: Tiny, copied: Path, canned: Any) -> None:
    from engines.validation.comparison import choose_comparison

    canned()
    artifact = Artifact.open(copied)
    result = validate.validate(artifact, "fp16", choose_comparison(artifact, "fp16"), validate.Settings(threads=1),
                               limits={"max_latency_ms": 50.0})  # fmt: skip
    assert result["exit_code"] == 1 and not result["budgets"][0]["held"]
