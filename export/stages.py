"""What a build shows while it runs: one line and one bar per stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Tick = Callable[[int, int, str], None]


class Stages:
    """Prints to stderr: `quiet` nothing, `verbose` every detail that a stage reports as well."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.verbose = verbose
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Tick]:
        """A stage with a bar; the yielded function takes (done, total, what)."""
        start = time.monotonic()
        columns = (
            SpinnerColumn(), TextColumn("{task.description:<12}"), BarColumn(24), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[what]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=None, what="")

            def tick(done: int, total: int, what: str = "") -> None:
                bar.update(task, completed=done, total=total, what=what)

            yield tick
        self.seconds[title] = time.monotonic() - start
        self.console.print(f"{title:<12} {self.seconds[title]:6.1f} s")

    def detail(self, text: str) -> None:
        """A line for --verbose."""
        if self.verbose:
            self.console.print(f"  {text}", soft_wrap=True)

    def say(self, text: str) -> None:
        """A line for everyone who is not --quiet."""
        self.console.print(text, soft_wrap=True)
