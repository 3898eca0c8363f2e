"""One worker process of a pool: started with one thread, a task at a time through a pipe."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

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
PATIENCE_S = 5  # for an idle process to end; then it is terminated


class Worker:
    """A process that calls `function` on what it is sent. `task` is the number of the task it works on, or None."""

    def __init__(self, context: ForkServerContext, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.task: int | None = None
        with environment(ONE_THREAD):
            self.process.start()
        theirs.close()

    def start(self, number: int, task: Any) -> None:
        """Begin a task; the answer comes through `pipe`."""
        self.task = number
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone: `answer` says so
            self.pipe.send(task)

    def answer(self) -> tuple[bool, Any]:
        """(True, result), or (False, (exception, traceback)). Raises EOFError or OSError where the process is gone."""
        found: tuple[bool, Any] = self.pipe.recv()
        self.task = None
        return found

    def ended(self) -> int | None:
        """The exit code of a process that is gone, below 0 the signal that ended it."""
        self.process.join()
        self.pipe.close()
        return self.process.exitcode

    def dismiss(self) -> None:
        """Let an idle process end by itself, so that what its libraries registered is taken back."""
        self.pipe.close()
        self.process.join(PATIENCE_S)

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.terminate()
        self.ended()


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
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables in this process's environment, and then those of before."""
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
