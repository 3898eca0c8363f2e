"""The pool keeps to its limit of memory, and makes room for a task that was killed."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from passes.solver.pool import WorkerDied, each

SECONDS = 0.3


@dataclass(frozen=True)
class Task:
    """Lasts SECONDS, and until `meet` tasks run at once; a `doomed` one is killed halfway at its first try."""

    name: str
    memory: int
    folder: Path
    doomed: bool = False
    meet: int = 1

    def __str__(self) -> str:
        return f"task {self.name}"


def work(task: Task) -> list[str]:
    """The names of those that were seen to run beside this one, its own included."""
    mark = task.folder / f"{task.name}.running"
    mark.touch()
    seen, deadline = set[str](), time.monotonic() + 60
    while not seen or len(seen) < task.meet and time.monotonic() < deadline:
        seen = {p.stem for p in task.folder.glob("*.running")}
    tried = task.folder / f"{task.name}.tried"
    if task.doomed and not tried.exists():
        tried.touch()
        time.sleep(SECONDS / 2)
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(SECONDS)
    mark.unlink()
    return sorted(seen)


def run(tasks: list[Task], workers: int, limit: int | None = None) -> dict[str, list[str]]:
    return {t.name: seen for t, seen in each(work, tasks, workers, __name__, lambda t: t.memory, limit)}


def test_what_is_in_flight_stays_below_the_limit_and_small_ones_fill_it(tmp_path):
    sizes = {"a": 6, "b": 5, "c": 4, "d": 3, "e": 1}
    seen = run([Task(n, size, tmp_path, meet=2 if n in "ac" else 1) for n, size in sizes.items()], 4, limit=10)
    assert sorted(seen) == list(sizes)
    assert all(sum(sizes[n] for n in names) <= 10 for names in seen.values())
    assert seen["a"] == seen["c"] == ["a", "c"]


def test_without_a_limit_all_run_at_once(tmp_path):
    seen = run([Task(n, 10**15, tmp_path, meet=3) for n in "abc"], 3)
    assert all(names == ["a", "b", "c"] for names in seen.values())


def test_a_task_beyond_the_limit_runs_alone(tmp_path):
    seen = run([Task("vast", 50, tmp_path), Task("a", 2, tmp_path), Task("b", 2, tmp_path)], 3, limit=10)
    assert seen["vast"] == ["vast"] and all("vast" not in seen[n] for n in "ab")


def test_a_killed_task_is_tried_again_when_the_others_are_done_and_with_half_the_workers(tmp_path):
    tasks = [Task("doomed", 1, tmp_path, doomed=True), *(Task(n, 1, tmp_path) for n in "abcdefgh")]
    seen = run(tasks, 4)
    assert len(seen) == 9
    assert set(seen["doomed"]) <= {"doomed", "d"}  # a, b and c, in flight when it was killed, were waited for
    later = [names for name, names in seen.items() if name not in "abc"]
    assert max(len(names) for names in later) <= 2


def die(code: int) -> None:
    os._exit(code) if code else os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(("code", "shown"), [(7, "code 7:"), (0, "code -11:")])
def test_a_worker_that_ends_in_another_way_is_not_tried_again(code, shown):
    with pytest.raises(WorkerDied, match=shown):
        list(each(die, [code, code], 2, __name__))
