"""The compiled kernels, shared by all test processes, and a way to run cases in a process with a given environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.kernels.case import Case
from tests.plugins.kernels.compiled import Compiled, compile_for_cpu

ROOT = Path(__file__).resolve().parents[3]
Answers = list[dict[str, Any]]
Run = Callable[..., Answers]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled code lies: one folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "kernels"


@pytest.fixture(scope="session")
def compiled(folder: Path) -> Compiled:
    return compile_for_cpu(folder)


@pytest.fixture(scope="session")
def sanitized(folder: Path) -> Compiled:
    """With AddressSanitizer and UndefinedBehaviorSanitizer."""
    return compile_for_cpu(folder, sanitize=True)


def run_cases(libraries: Compiled, cases: Sequence[Case], run: str = "compare", **environment: object) -> Answers:
    """Answers of tests/plugins/kernels/worker.py; `environment` entries are SVDQ_CPU_<name>. Fails where it crashes."""
    asked = "".join(json.dumps({"run": run, **asdict(c)}) + "\n" for c in cases)
    settings = {f"SVDQ_CPU_{k.upper()}": str(v) for k, v in environment.items()}
    process = subprocess.run(
        [sys.executable, "-m", "tests.plugins.kernels.worker"],
        input=asked, capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **libraries.environment, **settings},
    )  # fmt: skip
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, f"after {len(answers)} cases: {process.stderr[-3000:]}"
    assert len(answers) == len(cases)
    return answers
