"""What each kernel takes of a multiprocessor, read from what ptxas says while compiling (`--ptxas-options=-v`)."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers of a thread; bytes of stack and of spilled registers of a thread; bytes of static shared
    memory of a block."""

    kernel: str
    registers: int
    stack: int
    spilled: int
    shared: int


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def read(log: str) -> list[Resources]:
    """Every kernel of the log, in its order. Raises ValueError for a log that is not understood."""
    found: list[Resources] = []
    kernel, stack, spilled = "", -1, -1
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernel, stack, spilled = entry[1], -1, -1
        elif frame := _STACK.search(line):
            stack, spilled = int(frame[1]), int(frame[2]) + int(frame[3])
        elif used := _USED.search(line):
            if not kernel or stack < 0:
                raise ValueError(f"ptxas says registers before the kernel or its stack: {line!r}")
            shared = _SHARED.search(line)
            found.append(Resources(kernel, int(used[1]), stack, spilled, int(shared[1]) if shared else 0))
            kernel = ""
    if not found or kernel:
        raise ValueError(f"ptxas's log has {len(found)} kernels and ends within {kernel or 'nothing'!r}")
    return found
