"""The errors a user can cause. Each is one line; the command line turns it into exit code 2 without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(Exception):
    """Something the user gave is wrong: one line naming what, the value, what is allowed and what to do.

    The message is folded onto one line, so that values with newlines cannot forge a second one.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


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
