"""Many layers: stored one by one, resumed, in parallel, and always the same bits."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from passes.solver import Job, Recipe, SolvedLayer, jobs, solve_all, solve_into, solve_key, solve_layer
from passes.solver.pool import WorkerDied
from tests.solver.synthetic import layer

SMALL = Recipe(rank=16, refine=3)


class Folder:
    """The simplest store."""

    def __init__(self, path: Path) -> None:
        self.path = self.root = path

    def get_arrays(self, key):
        file = self.path / key
        return pickle.loads(file.read_bytes()) if file.exists() else None

    def put_arrays(self, key, arrays, meta):
        assert all(type(v) is str for v in meta.values())
        partial_file = self.path / f"{key}.{os.getpid()}"
        partial_file.write_bytes(pickle.dumps((arrays, meta)))
        partial_file.rename(self.path / key)


def some_jobs(count=5):
    shapes = [(64 + 32 * i, 128) for i in range(count)]
    return [Job(f"l{i}", partial(layer, *shape, seed=i), SMALL) for i, shape in enumerate(shapes)]


def bits(solved: dict[str, SolvedLayer]):
    return {n: ({k: a.tobytes() for k, a in s.arrays().items()}, s.meta()) for n, s in solved.items()}


@pytest.fixture
def always_a_pool(monkeypatch):
    monkeypatch.setattr(jobs, "WORTH_A_POOL", 0)


def test_one_process_and_two_give_the_same_bytes(tmp_path, always_a_pool):
    found = []
    for workers in (1, 2):
        store = Folder(tmp_path / str(workers))
        store.path.mkdir()
        found.append(solve_all(some_jobs(), store, workers))
    assert list(found[0]) == list(found[1]) == ["l0", "l1", "l2", "l3", "l4"]
    assert bits(found[0]) == bits(found[1])
    direct = solve_layer(*layer(64, 128, seed=0), SMALL)
    assert bits({"l0": direct})["l0"] == bits(found[0])["l0"]


def test_identical_layers_have_identical_results(tmp_path):
    twins = [Job(name, partial(layer, 96, 128), SMALL) for name in ("a", "b")]
    found = bits(solve_all(twins, Folder(tmp_path), 1))
    assert found["a"] == found["b"]


def test_a_second_run_solves_nothing(tmp_path, monkeypatch):
    store = Folder(tmp_path)
    first = solve_all(some_jobs(), store, 1)

    def refuse(*_):
        raise AssertionError("solved again")

    monkeypatch.setattr(jobs, "solve_layer", refuse)
    lines = []
    assert bits(solve_all(some_jobs(), store, 1, lines.append)) == bits(first)
    assert len(lines) == 5 and all("from the store" in line for line in lines)


def test_largest_first_and_each_stored_before_the_next(tmp_path, monkeypatch):
    store = Folder(tmp_path)
    order, stored = [], []

    def watch(weight, *rest):
        order.append(weight.shape[0])
        stored.append(len(list(tmp_path.iterdir())))
        return solve_layer(weight, *rest)

    monkeypatch.setattr(jobs, "solve_layer", watch)
    keys = solve_into(some_jobs(), store, 1)
    assert order == [192, 160, 128, 96, 64] and stored == [0, 1, 2, 3, 4]
    assert list(keys) == ["l0", "l1", "l2", "l3", "l4"]
    assert keys["l2"] == solve_key(*layer(128, 128, seed=2), SMALL)


def broken():
    weight, bias, samples = layer(64, 128)
    weight[3, 4] = np.nan
    return weight, bias, samples


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_layer_is_named(workers, tmp_path, always_a_pool):
    with pytest.raises(ValueError, match=r"^layer bad: the weight hold nan at \(3, 4\)"):
        solve_all([*some_jobs(2), Job("bad", broken, SMALL)], Folder(tmp_path), workers)


def dies():
    if os.environ.get("OMP_NUM_THREADS") == "1":  # in a worker; the parent loads it, too, to see its size
        os._exit(9)
    return layer(64, 128)


def test_a_killed_worker_is_an_error_that_names_the_layer(tmp_path, always_a_pool, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(WorkerDied, match="layer doomed ended with code 9"):
        solve_all([*some_jobs(2), Job("doomed", dies, SMALL)], Folder(tmp_path), 2)


def hungry(folder: Path, times: int):
    """Is killed as the kernel does it where memory runs out, the first `times` times."""
    tries = len(list(folder.glob("try*")))
    (folder / f"try{tries}").touch()
    if tries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return layer(64, 128)


def test_a_layer_whose_worker_was_killed_for_memory_is_solved_at_the_second_try(tmp_path, always_a_pool):
    store, tries = Folder(tmp_path / "store"), tmp_path / "tries"
    store.path.mkdir()
    tries.mkdir()
    some = [Job("hungry", partial(hungry, tries, 1), SMALL, (64, 128, 96)), *some_jobs(3)]
    found = bits(solve_all(some, store, 2))
    assert len(list(tries.iterdir())) == 2
    assert found["hungry"] == bits({"direct": solve_layer(*layer(64, 128), SMALL)})["direct"]


def test_a_layer_that_is_killed_twice_is_named_with_the_memory_that_it_needs(tmp_path, always_a_pool):
    job = Job("vast", partial(hungry, tmp_path, 2), SMALL, (12288, 49152, 512))
    with pytest.raises(WorkerDied) as caught:
        solve_all([job, *some_jobs(1)], Folder(tmp_path), 4)
    sentence = str(caught.value)
    assert "layer vast ended with code -9 twice" in sentence and "no more than 2 at once" in sentence
    assert "about 7." in sentence and "GB" in sentence and "--jobs 1" in sentence


def test_two_jobs_of_one_name_and_no_workers_are_refused(tmp_path):
    twice = [Job("same", partial(layer, 64, 128), SMALL)] * 2
    with pytest.raises(ValueError, match="several jobs are named 'same'"):
        solve_all(twice, Folder(tmp_path), 1)
    with pytest.raises(ValueError, match="workers is 0"):
        solve_all([], Folder(tmp_path), 0)
    assert solve_all([], Folder(tmp_path), 2) == {}


# Whatever a background shell starts ignores Ctrl-C, children included: the run takes Python's own handler back.
SLOW_RUN = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from functools import partial
from pathlib import Path
from passes.solver import Job, Recipe, jobs
from tests.solver.synthetic import layer
from tests.solver.test_jobs import Folder, slow
jobs.WORTH_A_POOL = 0
todo = [Job(f"l{i}", partial(slow, i), Recipe(rank=16, refine=3), (9 - i, 128, 96)) for i in range(6)]
jobs.solve_all(todo, Folder(Path(sys.argv[1])), 2, print)
"""


def slow(number):
    """The first layer of each worker is quick, the others take for ever."""
    if number >= 2:
        time.sleep(60)
    return layer(64, 128, seed=number)


def test_ctrl_c_ends_the_workers_at_once_and_keeps_what_was_solved(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(tmp_path)], stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 150
        while len([f for f in tmp_path.iterdir() if "." not in f.name]) < 2:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.1)
        workers = children(run.pid)
        assert workers
        os.killpg(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=30)
    finally:
        if run.poll() is None:
            run.kill()
    assert "KeyboardInterrupt" in errors
    time.sleep(0.5)
    assert not [pid for pid in workers if alive(pid)]
    kept = solve_all([Job("l0", partial(slow, 0), SMALL), Job("l1", partial(slow, 1), SMALL)], Folder(tmp_path), 1)
    assert len(kept) == 2 and len(list(tmp_path.iterdir())) == 2


def children(pid: int) -> list[int]:
    """All descendants."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
