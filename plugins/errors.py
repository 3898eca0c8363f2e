"""The one exception of this package that a user is meant to read, and how its commands print it.

The twin of artifact.errors: this package imports nothing else of ours, so that a device can build it alone.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterator

INTERRUPTED = 130  # the shell's exit code after Ctrl-C


class PluginError(Exception):
    """Something the user can put right: one sentence with what is wrong, the value seen, and what to do."""

    exit_code = 2


def nearest(word: str, known: list[str]) -> str:
    """A clause naming the known words: first what `word` may have been meant to be, else all of them."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known are " + ", ".join(repr(k) for k in known) + "."


@contextlib.contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Print a PluginError as one line on stderr and end with exit code 2; with `debug`, let every exception through."""
    try:
        yield
    except PluginError as e:
        if debug:
            raise
        sys.stderr.write(f"error: {e}\n")
        raise SystemExit(e.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as e:
        if debug:
            raise
        sys.stderr.write(f"internal error: {type(e).__name__}: {e} (run again with --debug to see where)\n")
        raise SystemExit(1) from None
