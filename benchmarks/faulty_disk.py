"""A disk that fails on purpose, in this process: the n-th call that writes, once or from then on.

    with FaultyDisk(errno.ENOSPC) as disk: work()            # nothing fails; disk.calls tells what was asked of it
    with FaultyDisk(errno.ENOSPC, at=3) as disk: work()      # the third call fails, all others are done
    with FaultyDisk(errno.ENOSPC, at=3, for_good=True) as disk: work()

A call is an open for writing, a write (of which half is done), a copy, fsync, rename, mkdir, or a statement to SQLite;
what only reads from SQLite fails with EIO alone: a disk that is full or read-only can be read. Everything else about
the calls is real. Not here: what a program should make of it.
"""

import builtins
import contextlib
import errno
import io
import os
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Self
from unittest import mock

SQLITE = {  # what SQLite makes of it: code, name, words
    errno.ENOSPC: (sqlite3.SQLITE_FULL, "SQLITE_FULL", "database or disk is full"),
    errno.EROFS: (sqlite3.SQLITE_READONLY, "SQLITE_READONLY", "attempt to write a readonly database"),
    errno.EIO: (sqlite3.SQLITE_IOERR, "SQLITE_IOERR", "disk I/O error"),
}
SETTINGS = ("PRAGMA FOREIGN_KEYS", "PRAGMA BUSY_TIMEOUT", "PRAGMA CASE_SENSITIVE", "PRAGMA SYNCHRONOUS", "ROLLBACK")
READS = ("SELECT", "PRAGMA", "BEGIN")
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FaultyDisk:
    """Counts the calls of all threads of this process while it is entered, and fails those that it is told to."""

    def __init__(self, error: int, at: int | None = None, for_good: bool = False, among: str = "") -> None:
        """`among` counts only calls of that name, e.g. COMMIT."""
        self.error, self.at, self.for_good, self.among = error, at, for_good, among
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for module, name, replacement in self._replacements():
            self._patches.enter_context(mock.patch.object(module, name, replacement))
        _entered.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _entered.remove(self)
        self._patches.close()

    def reached(self, what: str) -> bool:
        """Count a call; True when it is to fail."""
        if not what.startswith(self.among):
            return False
        with self._lock:
            self.calls.append(what)
            number = len(self.calls)
        return self.at is not None and (number == self.at or (self.for_good and number > self.at))

    def refuse(self, what: str, path: Any) -> None:
        """Count a call and raise when it is to fail."""
        if self.reached(f"{what} {_name(path)}"):
            raise OSError(self.error, os.strerror(self.error), _name(path))

    def refuse_statement(self, statement: str) -> None:
        """The same for SQLite."""
        words = " ".join(statement.upper().split())
        if words.startswith(SETTINGS) or (words.startswith(READS) and self.error != errno.EIO):
            return
        if self.reached(" ".join(words.split()[:3])):
            code, name, text = SQLITE[self.error]
            error = sqlite3.OperationalError(text)
            error.sqlite_errorcode, error.sqlite_errorname = code, name
            raise error

    def _replacements(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        plain_open = os.open

        def first_path(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
                if what != "mkdir" or not os.path.lexists(path):  # "it exists" comes before "the disk is full"
                    self.refuse(what, path)
                return call(path, *args, **kwargs)

            return watched

        def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & WRITE_FLAGS:
                self.refuse("open", path)
            return plain_open(path, flags, *args, **kwargs)

        opened = _open_of(self, io.open)
        watched = [(os, name, first_path(name, getattr(os, name))) for name in ("fsync", "rename", "replace", "mkdir")]
        return [
            *watched,
            (os, "sendfile", first_path("copy", os.sendfile)),
            (os, "open", os_open),
            (io, "open", opened),
            (builtins, "open", opened),
        ]


def _name(path: Any) -> str:
    """Of the file, for people; a descriptor has none."""
    return "a descriptor" if isinstance(path, int) else os.path.basename(os.fsdecode(path))


def _open_of(disk: FaultyDisk, plain: Callable[..., Any]) -> Callable[..., Any]:
    """`open` whose files write through the disk; anything but a file to be written is opened as ever."""

    class Raw(io.FileIO):
        def write(self, content: Any) -> int:
            if disk.reached(f"write {_name(self.name)}"):
                view = memoryview(content).cast("B")
                super().write(view[: len(view) // 2])
                raise OSError(disk.error, os.strerror(disk.error), _name(self.name))
            return super().write(content)

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        foreign = isinstance(file, int) or os.fsdecode(file).startswith(("/dev/", "/proc/"))
        if foreign or not set(mode) & set("wax+"):
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        disk.refuse("open", file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    return opened


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, *args: Any) -> Any:
        _ask(sql)
        return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        _ask(sql)
        return super().executemany(sql, *args)


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, *args: Any) -> Any:
        return self.cursor().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        return self.cursor().executemany(sql, *args)

    def executescript(self, sql: str) -> Any:
        _ask(sql)
        return super().executescript(sql)

    def commit(self) -> None:
        if self.in_transaction:
            _ask("COMMIT")
        super().commit()


_entered: list[FaultyDisk] = []


def _ask(statement: str) -> None:
    if _entered:
        _entered[-1].refuse_statement(statement)


def _connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
    return _plain_connect(*args, **{**kwargs, "factory": _Connection})


# for good, at import: a pool keeps connections that were made before a disk is entered
_plain_connect = sqlite3.connect
sqlite3.connect = sqlite3.dbapi2.connect = _connect
