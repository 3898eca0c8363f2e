"""Runs are appended whole, whatever else happens to the file; damage is told of and does no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import UserError
from engines.validation import history

ROOT = Path(__file__).resolve().parent.parent.parent.parent
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def run(number: int) -> dict[str, object]:
    return {"format": 1, "number": number}


def test_runs_are_read_back_in_order(tmp_path: Path) -> None:
    assert history.read(tmp_path, 1) == ([], None)
    for number in range(3):
        history.append(tmp_path, run(number))
    assert history.read(tmp_path, 1) == ([run(0), run(1), run(2)], None)


@given(JSON)
def test_whatever_json_holds_stays_on_its_line(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    root = tmp_path_factory.mktemp("history")
    history.append(root, {"format": 1, "value": value})
    history.append(root, run(2))
    assert history.read(root, 1) == ([{"format": 1, "value": value}, run(2)], None)


def test_numbers_that_json_lacks_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        history.append(tmp_path, {"format": 1, "value": float("nan")})
    assert not (tmp_path / history.NAME).exists()


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engines.validation import history\n"
        "for i in range(25):\n"
        "    history.append(Path(sys.argv[1]), {'format': 1, 'who': sys.argv[2], 'i': i, 'x': 'y' * 70000})"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen([*command, str(who)], cwd=ROOT) for who in range(4)]
    assert [p.wait() for p in started] == [0] * 4
    runs, damaged = history.read(tmp_path, 1)
    assert damaged is None and len(runs) == 100
    for who in range(4):
        assert [r["i"] for r in runs if r["who"] == str(who)] == list(range(25))


def test_half_a_line_of_a_killed_run_harms_no_other(tmp_path: Path) -> None:
    path = history.append(tmp_path, run(0))
    path.write_bytes(path.read_bytes() + json.dumps(run(1))[:9].encode())
    history.append(tmp_path, run(2))
    runs, damaged = history.read(tmp_path, 1)
    assert runs == [run(0), run(2)] and damaged == f"1 of 3 lines of {path} cannot be read and were left out."


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b"3", b"null", b'{"format": 2}', b"{}", b"[" * 100_000])
def test_lines_that_are_no_run_are_left_out_and_told_of(tmp_path: Path, line: bytes) -> None:
    path = history.append(tmp_path, run(0))
    path.write_bytes(line + b"\n\n" + path.read_bytes())
    runs, damaged = history.read(tmp_path, 1)
    assert runs == [run(0)] and damaged is not None and damaged.startswith("1 of 2 lines")


def test_a_write_that_the_disk_cannot_hold_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = history.append(tmp_path, run(0))
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with pytest.raises(UserError, match="is full"):
        history.append(tmp_path, run(1))
    assert path.read_bytes() == before


def test_a_history_that_cannot_be_written_or_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "validation").touch()
    with pytest.raises(UserError, match="Cannot write .*history.jsonl"):
        history.append(tmp_path, run(0))
    with pytest.raises(UserError, match="Cannot read .*history.jsonl"):
        history.read(tmp_path, 1)
