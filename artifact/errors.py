"""The one exception that a user is meant to read."""

from __future__ import annotations

import re

OURS = ("artifact", "export", "passes", "plugins", "engines")


class UserError(Exception):
    """Something the user can put right.

    The message is one sentence: what is wrong, with the value seen, and what to do about it. Commands print it
    without a traceback and end with exit code 2.
    """

    exit_code = 2


def not_installed(error: ModuleNotFoundError) -> UserError | None:
    """What to do about a package of an extra that is missing; None where the module is one of ours."""
    name = (error.name or "").split(".")[0]
    if not name or name in OURS:
        return None
    return UserError(
        f"The Python package {name!r} is not installed: pip install 'svdq-edge[export]' brings what compiles and "
        "draws; on a device, the bundle of `python -m engines.deploy` needs none of it."
    )


# std::bad_alloc as pybind11 and onnxruntime report it, its arena's own words, torch's, CUDA's and plugins/device.py's.
_MEMORY = re.compile(
    r"bad[_ ]alloc|failed to allocate memory|out of memory|cannot allocate memory|not enough memory|OUT_OF_MEMORY"
    r"|do not fit into the GPU's memory",
    re.IGNORECASE,
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out: MemoryError, or the words of a library."""
    return isinstance(error, MemoryError) or bool(_MEMORY.search(str(error)))


def out_of_memory(error: Exception) -> UserError | None:
    """What to do where memory ran out; None for any other error."""
    if not ran_out_of_memory(error):
        return None
    return UserError(
        "Memory ran out: close other programs, or let this one take less (--max-memory, fewer --jobs, a smaller "
        "image); finished steps are kept."
    )


def nearest(word: str, known: list[str]) -> str:
    """A clause naming the known words: first what `word` may have been meant to be, else all of them."""
    import difflib

    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known are " + ", ".join(repr(k) for k in known) + "."
