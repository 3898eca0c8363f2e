"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can put right.

    The message is one sentence: what is wrong, with the value seen, and what to do about it. Commands print it
    without a traceback and end with exit code 2.
    """

    exit_code = 2


def nearest(word: str, known: list[str]) -> str:
    """A clause naming the known words: first what `word` may have been meant to be, else all of them."""
    import difflib

    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known are " + ", ".join(repr(k) for k in known) + "."
