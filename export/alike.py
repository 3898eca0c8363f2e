"""Runs of blocks that are alike, of which a few stand for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

KEPT = 4  # blocks of a run that are exported: the first, two in a row that show what repeats, the last
_PLACE = ("layer_idx",)  # what blocks may differ in: where they stand
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)


@dataclass(frozen=True)
class Run:
    """Blocks `first`, `second`, `third`, `left_out`... and one more, children of the list of modules at `parent`."""

    parent: str
    first: str
    second: str
    third: str
    left_out: tuple[str, ...]

    def path(self, child: str) -> str:
        """Dotted path of a block."""
        return f"{self.parent}.{child}" if self.parent else child


def shorten(module: torch.nn.Module) -> list[Run]:
    """Take out, in place, all but KEPT blocks of every run of more; the others keep their names. Returns what it did.

    Only lists that a forward walks through can lose blocks: one that asks for a block by its number finds none there
    and raises.
    """
    runs = []
    for path, parent in _lists(module, ""):
        for names in _runs(parent):
            for name in names[KEPT - 1 : -1]:
                del parent._modules[name]
            first, second, third, *left_out, _ = names
            runs.append(Run(path, first, second, third, tuple(left_out)))
    return runs


def _lists(module: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """Lists that hold a run, outermost ones alone, with their paths."""
    if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)) and _runs(module):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _lists(child, f"{path}.{name}" if path else name)


def _runs(parent: torch.nn.Module) -> list[list[str]]:
    """Names of children in a row that are alike, where there are more than KEPT."""
    runs: list[list[str]] = []
    before = None
    for name, child in parent.named_children():
        if before is not None and alike(before, child):
            runs[-1].append(name)
        else:
            runs.append([name])
        before = child
    return [run for run in runs if len(run) > KEPT]


def alike(a: Any, b: Any) -> bool:
    """Whether two modules would compute the same with the same weights, as far as their attributes tell.

    Parameters count by shape and dtype, other tensors by their values.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.nn.Parameter):
        return a.shape == b.shape and a.dtype == b.dtype
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool(torch.equal(a, b))
    if isinstance(a, _PLAIN):
        return bool(a == b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(k in _PLACE or alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    if hasattr(a, "__func__"):  # bound to modules that are compared themselves
        return a.__func__ is b.__func__
    if hasattr(a, "__dict__"):
        return alike(vars(a), vars(b))
    return bool(a == b)
