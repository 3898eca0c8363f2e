"""What every command shares: how a user's error looks, and how little the libraries say."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from artifact.errors import UserError

INTERRUPTED = 130  # the shell's exit code after Ctrl-C


@contextlib.contextmanager
def reported(debug: bool, offline: bool = True) -> Iterator[None]:
    """Print a UserError as one line on stderr and end with exit code 2; with `debug`, let every exception through.

    `offline`: the command reads nothing but an artifact and must not reach for a hub.

    Anything else is a fault of ours: one line that asks to run again with --debug, and exit code 1.
    """
    silence_libraries(offline)
    try:
        yield
    except UserError as e:
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


def silence_libraries(offline: bool) -> None:
    """Keep diffusers and transformers from chatting and, `offline`, from looking for a network.

    Call it before their import.
    """
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    for name, value in (quiet | ({"HF_HUB_OFFLINE": "1"} if offline else {})).items():
        os.environ.setdefault(name, value)
