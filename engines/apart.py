"""A command module of ours in a process of its own, for figures that nothing else in a process may touch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifact.errors import UserError


class Apart:
    """`python -m module arguments`, started now; `result` is the JSON object in its last line.

    Its stdin stays open until `result` asks, which sends a line: a module may do its imports and wait for that. Leaving
    the `with` block ends the process. `what` is what messages call it.
    """

    def __init__(self, module: str, arguments: Sequence[str], what: str) -> None:
        source = str(Path(__file__).resolve().parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.getenv("PYTHONPATH")]))}
        self._what, command = what, [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, text=True, env=environment, stdin=-1, stdout=-1, stderr=-1)

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def result(self) -> dict[str, Any]:
        """Wait for the process. Raises UserError with its own sentence where it fails."""
        said, errors = self._process.communicate("\n")
        if code := self._process.returncode:
            raise UserError(f"{self._what} failed: {reason(code, errors)}")
        return json.loads(said.strip().splitlines()[-1])


def reason(code: int, errors: str) -> str:
    """Why a process ended with `code`: the last line that it said, or which signal ended it."""
    if code == -signal.SIGKILL:
        return (
            "the system killed the process, most likely because memory ran out; close other programs or use a "
            "smaller preset or --max-memory."
        )
    if code < 0:
        return f"the process was ended by signal {-code}."
    lines = errors.strip().splitlines() or [f"the process ended with code {code}."]
    return lines[-1].removeprefix("error: ")
