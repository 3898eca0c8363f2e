"""Which graphs are in memory when: one object between a pipeline's modules and the runners behind them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import numpy as np

from artifact.errors import UserError
from artifact.free import trim
from engines.backends import Runner, WeightStreaming
from engines.faults import NotFinite, OutOfMemory
from engines.modes import MODES

log = logging.getLogger("engines")
Watch = Callable[[str], None]  # hears "load text_encoder", "free text_encoder", "step 1"
LAST_STEPS = 2  # the image decoder is loaded while these run


def _unwatched(what: str) -> None:
    """Where nobody listens."""


class Residency:
    """Opens and closes runners so that no more of them are in memory than the mode allows.

    resident: all, from `load` to `close`; the image encoder from its first use, or with `encodes`, where every image
    is drawn from a picture, like the others.
    pipelined: the denoiser; the text encoders (and the image encoder) until its first step, the image decoder from its
    last steps, where a thread loads it, until the image is there.
    streaming: pipelined with the weights of every runner that can do so streamed from the host; where the denoiser's
    cannot (onnxruntime on the CPU, an engine not built for it), one graph at a time, not even it beside another.

    Where memory runs out the next mode is taken, and the log says so. `roles`: component name to role.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        roles: Mapping[str, str],
        mode: str,
        watch: Watch | None = None,
        encodes: bool = False,
    ) -> None:
        self.runners, self.roles, self.mode = dict(runners), dict(roles), mode
        self.notes: list[str] = []  # sentences on what went otherwise than asked
        self._encodes = encodes
        self._watch = watch or _unwatched
        self._open: set[str] = set()
        self._loader: _Loader | None = None
        self._closed = False
        self._step: tuple[int, int] | None = None  # (step, of how many) of the denoiser
        self._set_streaming()

    def load(self) -> None:
        """Open what the mode keeps from the start. Raises what the runners' `open` raises, with everything closed."""
        try:
            while (missing := self._kept_from_the_start() - self._open) and not self._closed:
                self._try(next(n for n in self.runners if n in missing))
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def close(self) -> None:
        """Wait for the loader, then free every graph. What is called afterwards is refused."""
        self._closed = True
        self._join()
        for name in self.runners:
            self._free(name)

    def step(self, number: int, of: int) -> None:
        """The denoiser is about to compute step `number` (from 1) `of` so many."""
        self._enter(next(iter(self._of_role("denoiser"))))
        if self._step != (number, of):
            self._step = (number, of)
            self._watch(f"step {number}")
        decoder = self._of_role("vae_decoder")
        ahead = self.mode != "resident" and not self._one_at_a_time
        if ahead and of - number < LAST_STEPS and self._loader is None and not decoder <= self._open:
            self._loader = _Loader(self.runners[next(iter(decoder))], self._watch)

    def run(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a component in its turn. Raises what its runner's `run` raises, and UserError once closed."""
        self._enter(name)
        try:
            outputs = self._run(name, feeds)
        except NotFinite as e:
            if self.roles[name] == "denoiser" and self._step:
                raise NotFinite(e.component, e.output, f"step {self._step[0]} of {self._step[1]}") from e
            raise
        if self.roles[name] == "vae_decoder":
            self._step = None
            if self.mode != "resident":
                self._free(name)
        return outputs

    def inputs(self, name: str) -> list[str]:
        """Names of a component's inputs; opens it."""
        self._enter(name)
        return self.runners[name].inputs

    def outputs(self, name: str) -> list[str]:
        self._enter(name)
        return self.runners[name].outputs

    def _run(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        while True:
            try:
                return self.runners[name].run(feeds)
            except OutOfMemory:
                if not self._tighten(name, "running"):
                    raise
                self._enter(name)

    def _enter(self, name: str) -> None:
        """Have a component in memory, and nothing that must not be there beside it."""
        if self._closed:
            raise UserError("This pipeline was closed: load the artifact again.")
        if self._loader is not None and (name == self._loader.name or self.roles[name] != "denoiser"):
            self._take_loaded(name)
        while not self._try(name):
            pass

    def _try(self, name: str) -> bool:
        """Free what must not be beside a component and open it; False where the mode had to change instead."""
        for other in self._open - {name} - self._companions(name):
            self._free(other)
        if name in self._open:
            return True
        self._watch(f"load {name}")
        try:
            self.runners[name].open()
        except OutOfMemory:
            if not self._tighten(name, "loading"):
                raise
            return False
        self._open.add(name)
        return True

    def _take_loaded(self, wanted: str) -> None:
        """Take over what the loader opened; raises what it ran into, unless that was memory and there is a remedy."""
        error = self._join()
        if error is None or self.roles[wanted] != "vae_decoder":
            return  # what nobody asks for may be broken
        if not (isinstance(error, OutOfMemory) and self._tighten(wanted, "loading")):
            raise error

    def _join(self) -> BaseException | None:
        """Wait for the loader, if there is one; what it ran into. Ctrl-C while waiting leaves it to `close`."""
        if self._loader is None:
            return None
        self._loader.thread.join()
        loader, self._loader = self._loader, None
        if loader.error is None:
            self._open.add(loader.name)
        return loader.error

    def _companions(self, name: str) -> set[str]:
        """What may stay in memory beside this component."""
        if self.mode == "resident":
            return set(self.runners)
        if self._one_at_a_time:
            return set()
        beside = {"denoiser", self.roles[name]}
        if self.roles[name] == "denoiser":
            beside |= {"vae_decoder"}
        return {n for n, r in self.roles.items() if r in beside}

    def _kept_from_the_start(self) -> set[str]:
        if self.mode == "resident":
            unasked = set() if self._encodes else self._of_role("vae_encoder")  # image-to-image may never come
            return set(self.runners) - unasked
        return set() if self._one_at_a_time else self._of_role("denoiser")

    def _tighten(self, name: str, doing: str) -> bool:
        """Free everything and take the next mode; False where there is none left."""
        if self.mode == MODES[-1]:
            return False
        before, self.mode = self.mode, MODES[MODES.index(self.mode) + 1]
        self._join()
        for other in self.runners:
            self._free(other)
        self._set_streaming()
        note = (
            f"Memory ran out while {doing} {name!r} in {before} mode: continuing in {self.mode} mode, which is slower."
        )
        self.notes.append(note)
        log.warning("%s", note)
        return True

    def _free(self, name: str) -> None:
        """Close a runner and give its memory back to the system."""
        self.runners[name].close()
        if name in self._open:
            self._open.discard(name)
            trim()
            self._watch(f"free {name}")

    def _set_streaming(self) -> None:
        streams = {n: r for n, r in self.runners.items() if isinstance(r, WeightStreaming) and r.can_stream}
        for each in streams.values():
            each.stream_weights = self.mode == "streaming"
        self._one_at_a_time = self.mode == "streaming" and not self._of_role("denoiser") <= set(streams)

    def _of_role(self, role: str) -> set[str]:
        return {n for n, r in self.roles.items() if r == role}


class Staged:
    """A component as a pipeline sees it: a Runner whose graph is in memory when the residency says so."""

    def __init__(self, name: str, residency: Residency) -> None:
        self.name, self._residency = name, residency
        self.latencies_ms = residency.runners[name].latencies_ms

    @property
    def runner(self) -> Runner:
        """What really runs the graph."""
        return self._residency.runners[self.name]

    @property
    def inputs(self) -> list[str]:
        return self._residency.inputs(self.name)

    @property
    def outputs(self) -> list[str]:
        return self._residency.outputs(self.name)

    def open(self) -> Staged:
        self._residency._enter(self.name)
        return self

    def close(self) -> None:
        self._residency._free(self.name)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._residency.run(self.name, feeds)


class _Loader:
    """A thread that opens one runner; `error` is what it ran into."""

    def __init__(self, runner: Runner, watch: Watch) -> None:
        self.name, self.error = runner.name, None
        self._runner, self._watch = runner, watch
        self.thread = threading.Thread(target=self._open, name=f"load {runner.name}")
        self.thread.start()

    error: BaseException | None

    def _open(self) -> None:
        try:
            self._watch(f"load {self.name}")
            self._runner.open()
        except BaseException as e:  # raised in the caller, when it asks for the runner
            self.error = e
