"""Layers on a Ray cluster of two local nodes: the local bytes, whatever becomes of a node."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from artifact.errors import UserError
from artifact.store import Store
from passes.solver import Job, Recipe, solve_into, solve_key
from passes.solver import cluster as clusters
from passes.solver.cluster import Cluster
from tests.solver.synthetic import layer
from tests.solver.test_jobs import alive, broken, hungry

SMALL = Recipe(rank=16, refine=3)
NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: svdq-edge[ray]")
#: A machine counts as lost after half a second, not after half a minute; workers, which imported torch, wait for more.
QUICK = {
    "health_check_initial_delay_ms": 0, "health_check_period_ms": 250, "health_check_failure_threshold": 2,
    "idle_worker_killing_time_threshold_ms": 120_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, and one connection to them for all tests: each of its own would start and import anew."""
    import ray
    from ray.cluster_utils import Cluster as Local

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
    started = Local(initialize_head=True, head_node_args=head)
    started.add_node(num_cpus=1, node_name="second")
    ray.init(address=started.address, logging_level="ERROR", log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


def node() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def on_both(folder: Path, number: int):
    """A layer, once tasks have run on two nodes."""
    assert os.environ["OMP_NUM_THREADS"] == "1"
    (folder / node()).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return layer(64 + 32 * number, 128, seed=number)


def stuck_on(doomed: str, folder: Path, number: int):
    """A layer, but on the node `doomed` a task that never ends."""
    if node() == doomed:
        (folder / f"{number}.{os.getpid()}").touch()
        time.sleep(600)
    return layer(64 + 32 * number, 128, seed=number)


def jobs(load, count=5) -> list[Job]:
    return [Job(f"l{i}", partial(load, i), SMALL, (64 + 32 * i, 128, 96)) for i in range(count)]


def plain(number: int):
    return layer(64 + 32 * number, 128, seed=number)


def entries(store: Store) -> dict[str, object]:
    """The bytes of every entry's arrays, and its numbers, by its key; nothing else is left there."""
    found = {}
    for path in (p for p in store.root.rglob("*") if p.is_file()):
        arrays, meta = store.get_arrays(path.name)
        found[path.name] = {k: (a.dtype, a.shape, a.tobytes()) for k, a in arrays.items()}, meta
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Keys and entries of the local executor."""
    store = Store(tmp_path_factory.mktemp("local"))
    return solve_into(jobs(plain), store, 1), entries(store)


@NEEDS_RAY
def test_without_an_address_a_ray_starts_here_and_ends_with_the_build(local, tmp_path, monkeypatch):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    store = Store(tmp_path)
    assert solve_into(jobs(plain), store, 2, max_memory=2 * 10**9, cluster=Cluster()) == local[0]
    assert entries(store) == local[1] and not ray.is_initialized()


@NEEDS_RAY
def test_two_nodes_give_the_local_keys_and_bytes_and_a_second_run_solves_nothing(cluster, local, tmp_path):
    store, seen = Store(tmp_path / "store"), tmp_path / "seen"
    seen.mkdir()
    lines: list[str] = []
    keys = solve_into(jobs(partial(on_both, seen)), store, 2, lines.append, cluster=Cluster(cluster.address))
    assert len(list(seen.iterdir())) == 2
    assert list(keys.items()) == list(local[0].items()) and entries(store) == local[1]
    assert [line.split()[0] for line in lines] == [f"[{i + 1}/5]" for i in range(5)]
    again: list[str] = []
    assert solve_into(jobs(plain), store, 2, again.append, cluster=Cluster(cluster.address)) == keys
    assert all("from the store" in line for line in again)


@NEEDS_RAY
def test_what_a_killed_node_worked_on_is_solved_by_another(cluster, local, tmp_path):
    store, tried = Store(tmp_path / "store"), tmp_path / "tried"
    tried.mkdir()
    doomed = cluster.add_node(num_cpus=1, node_name="doomed")

    def kill() -> None:
        while not list(tried.iterdir()):
            time.sleep(0.05)
        (raylet,) = doomed.all_processes["raylet"]
        raylet.process.kill()
        raylet.process.wait()  # a zombie would look alive to its workers, which otherwise end themselves

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    keys = solve_into(jobs(partial(stuck_on, doomed.node_id, tried)), store, 2, cluster=Cluster(cluster.address))
    killer.join(timeout=10)
    assert len(list(tried.iterdir())) == 1
    assert keys == local[0] and entries(store) == local[1]


@NEEDS_RAY
def test_a_layer_whose_worker_was_killed_is_solved_by_another_and_given_up_in_a_sentence(
    cluster, tmp_path, monkeypatch
):
    shape = (64, 128, 96)
    job = Job("hungry", partial(hungry, tmp_path, 1), SMALL, shape)
    keys = solve_into([job], Store(tmp_path / "store"), 2, cluster=Cluster(cluster.address))
    assert keys == {"hungry": solve_key(*layer(64, 128), SMALL)} and len(list(tmp_path.glob("try*"))) == 2
    monkeypatch.setattr(clusters, "RETRIES", 0)
    job = Job("vast", partial(hungry, tmp_path, 3), SMALL, shape)
    with pytest.raises(UserError, match=r"^Ray gave up layer vast after 1 attempts .+ it needs about 0\.2 GB"):
        solve_into([job], Store(tmp_path / "store"), 2, cluster=Cluster(cluster.address))


@NEEDS_RAY
def test_a_node_that_does_not_see_what_we_see_is_refused_by_name(cluster, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"...")
    # A path that means something in this process only, as one on a disk of this machine would.
    os.dup2(os.open(weights, os.O_RDONLY), 500)
    os.dup2(os.open(tmp_path, os.O_RDONLY), 501)
    ours = [Job("l0", partial(plain, 0), SMALL, (64, 128, 96), (Path("/proc/self/fd/500"),))]
    try:
        with pytest.raises(
            UserError, match=r"^Machine .+ does not see /proc/self/fd/500: mount it under the same path"
        ):
            solve_into(ours, Store(tmp_path), 2, cluster=Cluster(cluster.address))
        with pytest.raises(UserError, match="^Machine .+ does not see the store /proc/self/fd/501: mount it"):
            solve_into(jobs(plain), Store("/proc/self/fd/501"), 2, cluster=Cluster(cluster.address))
    finally:
        os.close(500)
        os.close(501)
    assert list(tmp_path.iterdir()) == [weights]


@NEEDS_RAY
def test_a_bad_layer_is_named_as_by_the_local_executor(cluster, tmp_path):
    with pytest.raises(ValueError, match=r"^layer bad: the weight hold nan at \(3, 4\)"):
        solve_into([Job("bad", broken, SMALL)], Store(tmp_path), 2, cluster=Cluster(cluster.address))


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from functools import partial
from pathlib import Path
from artifact.store import Store
from passes.solver import solve_into
from passes.solver.cluster import Cluster
from tests.solver.test_cluster import endless, jobs
folder = Path(sys.argv[2])
solve_into(jobs(partial(endless, folder)), Store(folder / "store"), 2, cluster=Cluster(sys.argv[1]))
"""


def endless(folder: Path, number: int):
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)


@NEEDS_RAY
def test_ctrl_c_ends_what_runs_on_the_cluster(cluster, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, cluster.address, str(tmp_path)], stderr=subprocess.PIPE, text=True,
        start_new_session=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(workers := [int(p.stem) for p in tmp_path.glob("*.pid")]) < 2:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            run.kill()
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "tasks go on"
        time.sleep(0.1)


def test_what_is_no_cluster_is_refused_in_a_sentence(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(UserError, match=r"Ray, which is not installed: pip install 'svdq-edge\[ray\]'"):
        Cluster("10.0.0.5:6379").check()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="The Ray address is 'ten': give HOST:PORT"):
        Cluster("ten").check()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"No Ray cluster answers at {address}: run `ray start --head` there"):
            Cluster(address).check()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=f"No Ray cluster answers at {address}"):
            Cluster().check()
