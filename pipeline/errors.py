"""What a person is told: the errors a user can cause, those of the machine, and every other line on a terminal.

The command line turns the first into exit code 2, the second into exit code 3; each is one line, without a traceback.
"""

import errno
import os
import re
import sqlite3
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TextIO

LONGEST_LINE = 1_500  # characters of an error
# in an address; a database takes one with slashes, and `http://host:5000/a@b` has a port there
PASSWORD = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s/:@'\"]*:)(?!\d{1,5}[/?#])[^\s@'\"]+@")
# a disk that is full, read-only or broken, in the words of the system and of SQLite
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
SQLITE_ERRORS = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN")


class BadInput(Exception):
    """Something the user gave is wrong: one line naming what, the value, what is allowed and what to do.

    The message is folded onto one line, so that values with newlines cannot forge a second one; what a terminal would
    act on is written out, and a line that values made endless is cut in its middle: what to do stands at its end.
    """

    def __init__(self, message: str) -> None:
        line = printable(" ".join(str(message).split()))
        half = LONGEST_LINE // 2
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}")


def printable(text: object) -> str:
    """Text from outside on one line that a terminal does nothing with but show: `"a\\n\\x1b[2J"` is `"a \\\\x1b[2J"`.

    Whitespace of any kind is a space; control characters, and those that turn the direction of text, are written out; a
    password in an address is left out: `postgresql://anna:***@host/runs`.
    """
    shown = "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in str(text))
    return PASSWORD.sub(r"\1***@", shown)


def say(line: object, stream: TextIO | None = None) -> None:
    """One line for people on standard output, or on another stream. Everything that is printed goes through here."""
    stream = stream or sys.stdout
    try:
        print(printable(line), file=stream, flush=True)
    except BrokenPipeError:  # a reader that has seen enough (`| head`) ends no work: the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Interrupted(Exception):
    """Work that was ended from outside: the same command goes on with it."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`'learning_rte', [...]` -> `" Did you mean 'learning_rate'?"`, or an empty string when nothing is close."""
    close = get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def shortened(value: object, limit: int = 120) -> str:
    """The `repr` of a value from outside, cut to `limit` characters so that an error stays one readable line."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} that is too long to be written"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def disk_refusal(error: BaseException) -> str | None:
    """What the system says when a full, read-only or broken disk is at the bottom of an error; else None.

    Looks through what other code made of it: an MLflow exception, a line for the user. Of what goes wrong while MLflow
    downloads, or a folder is copied, only the text is left.
    """
    found: BaseException | None = error
    while found is not None:
        refused = isinstance(found, OSError) and found.errno in DISK_ERRORS
        quoted = any(f"[Errno {number}]" in str(found) for number in DISK_ERRORS)
        name = getattr(found, "sqlite_errorname", "") if isinstance(found, sqlite3.Error) else ""
        if refused or quoted or name.startswith(SQLITE_ERRORS):
            return str(found)
        found = found.__cause__ or found.__context__
    return None


def memory_refusal(error: BaseException) -> str | None:
    """What was asked for when there was not so much memory, of this machine or of its GPU, and what asks for less."""
    refused = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, of a GPU
    refused = refused or "DefaultCPUAllocator" in str(error)  # torch's, of this machine
    if not refused or isinstance(error, OSError):  # what was said already
        return None
    return f"{error or 'out of memory'}; lower network.hidden, n_envs, batch sizes, the number of episodes or workers"


def machine_fault(doing: str, error: BaseException) -> str | None:
    """The one line for what the system refused, `collect could not go on: ...`; None for a defect."""
    reason = disk_refusal(error) or memory_refusal(error) or (str(error) if isinstance(error, OSError) else None)
    return None if reason is None else str(BadInput(f"{doing} could not go on: {reason}"))  # folded like those
