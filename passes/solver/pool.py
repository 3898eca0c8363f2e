"""A process pool for layers: one thread per worker, a task at a time, and nothing left behind when it ends.

The standard library's executor lets running tasks finish on Ctrl-C, does not say which task killed it, and knows no
limit of memory.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import TypeVar

from artifact.errors import UserError
from passes.solver.worker import Worker

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerDied(UserError):
    """A worker ended without an answer: killed from outside, most often for want of memory."""


def each(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    preload: str,
    memory: Callable[[Task], int] | None = None,
    limit: int | None = None,
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, function(task)) as they finish; tasks start in the given order on `workers` processes.

    function, tasks and results must be picklable; `preload` is a module worth importing before the workers are forked
    from one server. memory(task) is what a task is estimated to take, in bytes: those in flight together stay within
    `limit`, a smaller task going first where the next does not fit, and one that is larger alone runs alone.

    A task whose worker is killed (SIGKILL: the kernel does so when memory runs out) is tried once more, when all others
    in flight are done; from then on there are half as many workers. Raises WorkerDied where that does not help, and
    for a worker that ends in any other way. The first exception of a task is raised here, with the worker's traceback
    as its cause. However this generator ends, by an exception, Ctrl-C or being closed, its workers are ended at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    sizes = [memory(task) if memory else 0 for task in tasks]
    waiting, killed, again = list(range(len(tasks))), list[int](), set[int]()
    crew: list[Worker] = []
    try:
        while waiting or killed or any(w.task is not None for w in crew):
            busy = {w.pipe: w for w in crew if w.task is not None}
            if killed and not busy:
                workers, again, waiting, killed = max(1, workers // 2), again | {*killed}, [*killed, *waiting], []
                for surplus in crew[workers:]:
                    surplus.end()
                del crew[workers:]
            while not killed and len(busy) < workers:
                free = limit - sum(sizes[w.task] for w in busy.values() if w.task is not None) if limit else None
                number = next((n for n in waiting if free is None or not busy or sizes[n] <= free), None)
                if number is None:
                    break
                idle = next((w for w in crew if w.task is None), None)
                if idle is None:
                    crew.append(idle := Worker(context, function))
                waiting.remove(number)
                idle.start(number, tasks[number])
                busy[idle.pipe] = idle
            for ready in wait(list(busy)):
                worker = next(w for p, w in busy.items() if p is ready)
                number = worker.task
                assert number is not None
                try:
                    good, answer = worker.answer()
                except (EOFError, OSError) as ended:
                    crew.remove(worker)
                    code = worker.ended()
                    if code != -signal.SIGKILL or number in again:
                        raise WorkerDied(_sentence(tasks[number], code, workers, sizes[number])) from ended
                    killed.append(number)
                    continue
                if not good:
                    error, trace = answer
                    raise error from RuntimeError(f"in a worker:\n{trace}")
                yield tasks[number], answer
        for worker in crew:
            worker.dismiss()
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.end()


def _sentence(task: object, code: int | None, workers: int, size: int) -> str:
    what = f"The process that worked on {task} ended with code {code}"
    if code != -signal.SIGKILL:
        return f"{what}: run the same command again, what was finished is kept."
    needs = f", and it needs about {size / 1e9:.1f} GB" if size else ""
    advice = "on a machine with more memory" if workers == 1 else "with --jobs 1, or with more memory free"
    return (
        f"{what} twice, the second time with no more than {workers} at once: the system ends processes so when memory "
        f"runs out{needs}; run the same command {advice}, what was finished is kept."
    )
