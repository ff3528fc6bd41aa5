"""The errors a user can cause. Each is one line; the command line turns it into exit code 2 without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_LINE = 1_500  # characters of an error


class BadInput(Exception):
    """Something the user gave is wrong: one line naming what, the value, what is allowed and what to do.

    The message is folded onto one line, so that values with newlines cannot forge a second one; what a terminal would
    act on is written out, and a line that values made endless is cut in its middle: what to do stands at its end.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(message).split()))
        half = LONGEST_LINE // 2
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}")


class Interrupted(Exception):
    """Work that was ended from outside: the same command goes on with it."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`'learning_rte', [...]` -> `" Did you mean 'learning_rate'?"`, or an empty string when nothing is close."""
    close = get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def shortened(value: object, limit: int = 120) -> str:
    """The `repr` of a value from outside, cut to `limit` characters so that an error stays one readable line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
