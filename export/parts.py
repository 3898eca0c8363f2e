"""Which parts of a torch module are loaded and run as one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

MOST_BYTES = 2 << 30  # weights of one part: a block of FLUX.1 in float32 has 1.4 GB


def parts(module: torch.nn.Module, most: int, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """The outermost modules with weights, of at most `most` bytes each, by their dotted names.

    What is larger is opened, unless there is nothing in it; a list of modules, which nobody calls, is opened always.
    """
    for name, child in module.named_children():
        size = sum(p.numel() * p.element_size() for p in child.parameters())
        if not size:
            continue
        inner = any(True for _ in child.children())
        if isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict)) or (size > most and inner):
            yield from parts(child, most, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def opened(module: torch.nn.Module, most: int) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules around those parts that have parameters or buffers of their own, by their dotted names."""
    inside = [name for name, _ in parts(module, most)]
    for name, child in module.named_modules():
        own = [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]
        if own and not any(name == part or name.startswith(f"{part}.") for part in inside):
            yield name, child
