"""A torch module block by block: each block runs all samples, a few at a time, before the next block runs.

Weights that lie in files are then read once for all samples, and what one block hands to the next lies in files, too:
memory is that of one block's weights and of the few samples in it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from artifact.files import as_user_error
from export.parts import MOST_BYTES, parts


@contextlib.contextmanager
def block_by_block(
    module: torch.nn.Module, samples: int, together: int, directory: Path, most: int = MOST_BYTES
) -> Iterator[None]:
    """While this holds, calls of `module` on a batch of `together` samples run its parts on `samples` at a time.

    A sample may be several rows of the batch (guidance doubles it); every row is what a batch of `samples` gives. The
    parts are those that offload.py loads at once, or, where all weights are in memory, those of at most `most` bytes.
    What they give lies in unnamed files in `directory`, on a GPU in its memory. Raises UserError where the disk that
    holds `directory` is full.
    """
    if together <= samples:
        yield
        return
    batch = _Batch(samples, together, directory)
    handle = module.register_forward_pre_hook(batch.see, with_kwargs=True)
    found = _loaded_at_once(module) or [part for _, part in parts(module, most)]
    before = [part.__dict__.get("forward") for part in found]
    for part in found:
        part.forward = batch.divided(part)
    try:
        yield
    finally:
        handle.remove()
        for part, forward in zip(found, before, strict=True):
            if forward is None:
                del part.forward
            else:
                part.forward = forward


def _loaded_at_once(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The parts whose weights accelerate reads when they are called; none where all weights are in memory."""
    return [m for m in module.modules() if getattr(getattr(m, "_hf_hook", None), "place_submodules", False)]


class _Batch:
    """How many rows the batch of the running call has, and how parts of it are taken."""

    def __init__(self, samples: int, together: int, directory: Path) -> None:
        self.samples, self.together, self.directory = samples, together, directory
        self.rows = 0

    def see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows = next(v for v in (*args, *kwargs.values()) if torch.is_tensor(v)).shape[0]

    def divided(self, part: torch.nn.Module) -> Callable[..., Any]:
        """`part`'s forward, some rows at a time."""
        hook = getattr(part, "_hf_hook", None)  # accelerate's: reads the weights before, drops them after
        forward = part.forward if hook is None else part._old_forward

        def run(*args: Any, **kwargs: Any) -> Any:
            if hook is None:
                return self._run(forward, args, kwargs)
            hook.pre_forward(part)
            try:
                return self._run(lambda *a, **k: forward(*_sent(a, hook), **_sent(k, hook)), args, kwargs)
            finally:
                hook.post_forward(part, None)

        return run

    def _run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        size = max(1, self.samples * self.rows // self.together)
        if self.rows <= size:
            return forward(*args, **kwargs)
        kept: list[Any] = []
        rooms: list[torch.Tensor | None] = []
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            some_args, some_kwargs = tree_map(lambda v, rows=rows: self._taken(v, rows), (args, kwargs))
            given, structure = tree_flatten(forward(*some_args, **some_kwargs))
            if start == 0:
                rooms = [self._room(v, rows.stop) for v in given]
                kept = [v if room is None else room for v, room in zip(given, rooms, strict=True)]
            for room, value in zip(rooms, given, strict=True):
                if room is not None:
                    room[rows] = value
        return tree_unflatten(kept, structure)

    def _taken(self, value: Any, rows: slice) -> Any:
        """The rows of an argument that has as many as the batch. Rotary positions are complex and have none."""
        if torch.is_tensor(value) and value.ndim and value.shape[0] == self.rows and not value.is_complex():
            return value[rows]
        return value

    def _room(self, value: Any, first: int) -> torch.Tensor | None:
        """A tensor for all rows of an output whose `first` rows are `value`; None where it has no rows."""
        if not (torch.is_tensor(value) and value.ndim and value.shape[0] == first):
            return None
        shape = (self.rows, *value.shape[1:])
        if value.device.type != "cpu":
            return value.new_empty(shape)
        return in_file(self.directory, shape, value.dtype)


def _sent(values: Any, hook: Any) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(values, hook.execution_device)


def in_file(directory: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor in a file without a name, which goes when the tensor does.

    The file's blocks are taken at once: a disk that is full is an error here, and not a signal when pages are written.
    Raises UserError where they are not to be had.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            memory = mmap.mmap(file.fileno(), size)
    except OSError as e:
        raise as_user_error(e, directory / "samples between blocks", size) from e
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)
