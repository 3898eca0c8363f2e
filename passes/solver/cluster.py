"""Layers on a Ray cluster: one task each; the store is where the machines meet.

Ray chooses the machine, and gives what a lost one was working on to another.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from artifact.errors import UserError
from passes.solver.nodes import check_nodes, enter
from passes.solver.worker import ONE_THREAD

Task = TypeVar("Task")
Result = TypeVar("Result")

#: How often Ray gives a layer to another worker when its worker or machine is lost.
RETRIES = 3

#: Layers handed to Ray at a time, for each CPU: enough that none waits, few enough that large ones stay first.
WINDOW = 2

#: Seconds without a finished layer after which the cluster is asked whether it still has CPUs.
PATIENCE = 10.0

#: Only keys pass through Ray's object store.
OBJECT_STORE = 100_000_000


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster by its address, "HOST:PORT"; None: RAY_ADDRESS, else a Ray that starts here and ends with us."""

    address: str | None = None

    @property
    def known(self) -> str | None:
        """The address of a cluster that is there already, or None where one starts here."""
        found = self.address or os.environ.get("RAY_ADDRESS")
        return found if found and found != "local" else None

    def check(self) -> None:
        """Raises UserError where Ray is not installed, the address is none, or nothing listens there."""
        if importlib.util.find_spec("ray") is None:
            raise UserError("--executor ray needs Ray, which is not installed: pip install 'svdq-edge[ray]'.")
        if self.known in (None, "auto"):
            return
        found = re.fullmatch(r"([\w.-]+):(\d{1,5})", self.known or "")
        if not found:
            raise UserError(
                f"The Ray address is {self.known!r}: give HOST:PORT as `ray start --head` prints it, such as "
                "10.0.0.5:6379."
            )
        try:
            # Ray itself tries for two minutes.
            socket.create_connection((found[1], int(found[2])), timeout=5).close()
        except (OSError, OverflowError):
            raise UserError(
                f"No Ray cluster answers at {self.known}: run `ray start --head` there, or correct --ray-address."
            ) from None


def each(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    cluster: Cluster,
    workers: int,
    memory: Callable[[Task], int],
    max_memory: int | None,
    store: Path,
    files: Sequence[Path],
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, function(task)) as they finish, `function` run by Ray with one CPU and one thread each.

    Tasks are handed out in the given order, with memory(task) as Ray's memory hint. Every machine must see `store` and
    `files` under the paths that we see. A Ray that starts here has `workers` CPUs and max_memory bytes. Raises
    UserError for a cluster that cannot be used, naming the machine, and for a task whose worker was lost too often; a
    task's exception is raised here. However this ends, by Ctrl-C too, Ray's workers stop at once.
    """
    import ray
    from ray import exceptions

    if not tasks:
        return
    with _connected(cluster, workers, max_memory):
        least = check_nodes(store, files)
        # A hint above the memory of a machine would keep the task off it, or waiting for ever.
        hints = [min(memory(task), least) for task in tasks]
        remote = ray.remote(num_cpus=1, max_retries=RETRIES, runtime_env={"env_vars": ONE_THREAD})(_run)
        waiting, running = list(range(len(tasks))), dict[Any, int]()
        folder = os.getcwd()
        try:
            while waiting or running:
                while waiting and len(running) < WINDOW * _cpus():
                    number = waiting.pop(0)
                    ref = remote.options(memory=hints[number] or None).remote(function, tasks[number], folder)
                    running[ref] = number
                finished, _ = ray.wait(list(running), timeout=PATIENCE)
                if not finished:
                    _cpus()
                for ref in finished:
                    number = running.pop(ref)
                    try:
                        answer = ray.get(ref)
                    except exceptions.RayTaskError as error:
                        raise error.cause from RuntimeError(f"on the cluster:\n{error}")
                    except exceptions.RayError as error:
                        raise UserError(_lost(tasks[number], error, memory(tasks[number]))) from error
                    yield tasks[number], answer
        finally:
            for ref in running:
                ray.cancel(ref, force=True)


@contextmanager
def _connected(cluster: Cluster, workers: int, max_memory: int | None) -> Iterator[None]:
    """Ray connected to the cluster, or started here; as it is where the caller has connected already."""
    import ray

    if ray.is_initialized():
        yield
        return
    cluster.check()
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if cluster.known is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        options |= {"num_cpus": workers, "_memory": max_memory, "object_store_memory": OBJECT_STORE}
        options |= {"include_dashboard": False}
    try:
        ray.init(address=cluster.known or "local", **options)
    except (OSError, RuntimeError, ValueError, SystemExit) as error:  # it ends the program where it cannot connect
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"Ray does not work at {cluster.known or 'this machine'} ({said}): look at `ray status` there."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _cpus() -> int:
    """The cluster's CPUs, of machines that are there now. Raises UserError where there are none."""
    import ray

    count = int(ray.cluster_resources().get("CPU", 0))
    if not count:
        raise UserError(
            "The Ray cluster has no CPU left: start a machine with `ray start --address=...` and run the same command "
            "again, what was finished is kept."
        )
    return count


def _run(function: Callable[[Any], Any], task: Any, folder: str) -> Any:
    enter(folder)
    return function(task)


def _lost(task: object, error: Exception, size: int) -> str:
    """The sentence for a task that Ray gave up."""
    return (
        f"Ray gave up {task} after {RETRIES + 1} attempts ({type(error).__name__}); it needs about {size / 1e9:.1f} GB:"
        " see that the machines have it, and run the same command again, what was finished is kept."
    )
