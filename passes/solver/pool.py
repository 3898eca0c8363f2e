"""A process pool for layers: one thread per worker, a task at a time, and nothing left behind when it ends.

The standard library's executor lets running tasks finish on Ctrl-C and does not say which task killed it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Read by the libraries while they load, so they have to be in place before a worker starts.
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
    )
}


class WorkerDied(RuntimeError):
    """A worker ended without an answer: killed from outside, most often for want of memory."""


def each(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, preload: str
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, function(task)) as they finish; tasks start in the given order on `workers` processes.

    function, tasks and results must be picklable; `preload` is a module worth importing before the workers
    are forked from one server. The first exception of a task is raised here, with the worker's traceback as
    its cause. However this generator ends, by an exception, Ctrl-C or being closed, its workers are ended at
    once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    waiting = list(reversed(tasks))
    pipes: dict[Connection, tuple[BaseProcess, Task]] = {}
    processes: list[BaseProcess] = []
    try:
        with _environment(ONE_THREAD):
            for _ in range(min(workers, len(tasks))):
                ours, theirs = context.Pipe()
                process: BaseProcess = context.Process(target=_serve, args=(theirs, function), daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                pipes[ours] = (process, waiting.pop())
        for pipe, (_, task) in pipes.items():
            _send(pipe, task)
        while pipes:
            for ready in wait(list(pipes)):
                assert isinstance(ready, Connection)
                pipe, (process, task) = ready, pipes[ready]
                try:
                    good, answer = pipe.recv()
                except (EOFError, OSError) as ended:
                    process.join()
                    raise WorkerDied(f"the process that worked on {task} ended with code {process.exitcode}") from ended
                if not good:
                    error, trace = answer
                    raise error from RuntimeError(f"in a worker:\n{trace}")
                if waiting:
                    pipes[pipe] = (process, waiting.pop())
                    _send(pipe, pipes[pipe][1])
                else:
                    del pipes[pipe]
                    pipe.close()
                yield task, answer
    finally:
        for started in processes:
            started.terminate()
        for started in processes:
            started.join()


def _send(pipe: Connection, task: Any) -> None:
    try:
        pipe.send(task)
    except (BrokenPipeError, ConnectionResetError):
        return  # the worker is gone: the answer's EOF says so, with the task's name


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    # Ctrl-C reaches the whole foreground group: the parent alone decides, and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return  # no more tasks, or the parent is gone
        try:
            answer = (True, function(task))
        except Exception as error:
            answer = (False, (error, traceback.format_exc()))
        pipe.send(answer)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
