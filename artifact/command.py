"""What every command shares: how a user's error looks, and how little the libraries say."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from artifact.errors import not_installed, out_of_memory

INTERRUPTED = 130  # the shell's exit code after Ctrl-C


@contextlib.contextmanager
def reported(debug: bool, offline: bool = True) -> Iterator[None]:
    """Print a user's error as one line on stderr and end with its exit code; with `debug`, let every exception through.

    A user's error is an exception whose class has an `exit_code`: UserError, or PluginError
    of the package that knows no other. Memory that ran out is one, too.
    `offline`: the command reads nothing but an artifact and must not reach for a hub.

    Anything else is a fault of ours: one line that asks to run again with --debug, and exit code 1. SIGTERM ends the
    command like an exception, so that its processes end with it and nothing half-written stays.
    """
    silence_libraries(offline)
    try:
        with _terminable():
            yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as e:
        if debug:
            raise
        if isinstance(e, ModuleNotFoundError):
            _end_without(e)
        if isinstance(code := getattr(type(e), "exit_code", None), int):
            sys.stderr.write(f"error: {e}\n")
            raise SystemExit(code) from None
        if said := out_of_memory(e):
            sys.stderr.write(f"error: {said}\n")
            raise SystemExit(said.exit_code) from None
        sys.stderr.write(f"internal error: {type(e).__name__}: {e} (run again with --debug to see where)\n")
        raise SystemExit(1) from None


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises SystemExit here; in a thread, where Python takes no handlers, it does what it did."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)  # as a shell reports it

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """For imports at the head of a command: a package that is not installed ends it with one line and exit code 2."""
    try:
        yield
    except ModuleNotFoundError as e:
        _end_without(e)
        raise


def _end_without(error: ModuleNotFoundError) -> None:
    """End with the sentence for a missing package; do nothing where the module is one of ours."""
    if said := not_installed(error):
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(said.exit_code) from None


def silence_libraries(offline: bool) -> None:
    """Keep diffusers and transformers from chatting and, `offline`, from looking for a network.

    Call it before their import.
    """
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    for name, value in (quiet | ({"HF_HUB_OFFLINE": "1"} if offline else {})).items():
        os.environ.setdefault(name, value)
