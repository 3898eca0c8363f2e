"""Real builds of the bundled models are validated: the numbers are those of its report, and a budget breaks by name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from engines.validation import history
from tests.compile.commands import ROOT

SCHEMA = json.loads((ROOT / "engines/validation/schema.json").read_text(encoding="utf-8"))


def run(*arguments: object) -> tuple[int, str, str]:
    """The command in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "engines.validate", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module", params=["built", "built_unet"], ids=["shapes-dit", "shapes-unet"])
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built: Path = request.getfixturevalue(request.param)
    return Path(shutil.copytree(built, tmp_path_factory.mktemp("validated") / "artifact"))


def test_a_bundled_model_is_measured_and_a_budget_breaks_by_name(copy: Path) -> None:
    code, out, error = run(copy, "--preset", "svdq-int4", "--json", "--runs", 2, "--max-seconds", 2, "--min-psnr", 10,
                           "--max-disk-mb", 1)  # fmt: skip
    result = json.loads(out)
    jsonschema.validate(result, SCHEMA)
    report = json.loads((copy / "report.json").read_text(encoding="utf-8"))
    reported = next(p for p in report["presets"] if p["name"] == "svdq-int4")
    assert code == 1
    said = re.fullmatch(r"broken: disk ([\d.]+) MB is above --max-disk-mb 1\n", error)
    assert said and float(said[1]) == pytest.approx(result["disk"]["total_bytes"] / 1e6, rel=0.01)
    assert result["disk"]["total_bytes"] == reported["size"]["total_bytes"]
    assert result["fidelity"]["psnr_db"]["each"] == pytest.approx(reported["fidelity"]["psnr_db"]["each"], abs=0.05)
    assert result["fidelity"]["latent_cosine"] == pytest.approx(reported["fidelity"]["latent_cosine"], abs=1e-4)
    assert result["prompt_score"]["of"] == len(report["prompts"])
    calls = {n: c["calls"] for n, c in result["latency"]["components"].items()}
    assert calls == {n: c["calls"] for n, c in reported["latency"]["components"].items()}
    assert len((copy / history.NAME).read_text(encoding="utf-8").splitlines()) == 1


def test_the_16_bit_build_is_nearer_to_the_references_than_the_4_bit_one(copy: Path) -> None:
    """Not the numbers of one preset under another's name."""
    code, out, error = run(copy, "--preset", "fp16", "--runs", 1, "--max-seconds", 0.001, "--min-psnr", 50)
    assert (code, error) == (0, "") and "1 of 1 budgets held" in out and "preset fp16 on onnxruntime" in out
