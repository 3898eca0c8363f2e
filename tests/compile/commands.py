"""Running the build command as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ("--references", "2", "--calibration", "2", "--steps", "2", "--rows", "64")


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "export.build", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, text=True, stdout=-1, stderr=-1, env=environment)


def build(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a whole run."""
    with start(*arguments) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def compiled(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """A whole run in this process, all but the report: measuring takes longer than a build that finds much stored."""
    from engines.report import console
    from export import compile
    from export.build import app

    monkeypatch.setattr(compile, "_report", lambda artifact, stages: {"prompts": []})
    monkeypatch.setattr(console, "show", lambda results: None)
    app([str(a) for a in arguments], standalone_mode=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence with which the command, run in this process, ends with exit code 2."""
    from export.build import app

    with pytest.raises(SystemExit) as ended:
        app([str(a) for a in arguments], standalone_mode=False)
    err = capsys.readouterr().err
    assert ended.value.code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0].removeprefix("error: ")


def onnx_files(out: Path) -> dict[str, bytes]:
    """Every graph and its weights, by relative name."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*/*.onnx*"))}
