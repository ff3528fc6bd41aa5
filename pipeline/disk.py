"""Files: down to the disk, which no loss of power takes back; behind a URI; kernels compiled once a machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pipeline.errors import BadInput, shortened


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's, with its cache where it finds a place to write it; on a disk that takes nothing without."""
    from numba import njit  # what asks the store a question need not wait for it

    try:
        return njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available"
        return njit(error_model="numpy")(function)


def sync(file: IO[Any]) -> None:
    """The bytes that were written to an open file. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder: files that were made, renamed or removed. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sqlite_file(uri: str) -> Path | None:
    """`"sqlite:///mlflow.db?timeout=60"` -> its absolute path, as SQLAlchemy reads it; None for any other store.

    Raises BadInput for a SQLite database that is no file of that name.
    """
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url  # late: it takes a quarter of a second
    from sqlalchemy.exc import ArgumentError

    try:
        name = make_url(uri).database or ""
    except (ArgumentError, ValueError):
        name = ""
    if not name or name == ":memory:" or name.startswith("file:"):
        raise BadInput(f"database {shortened(uri)} cannot be used: name a file, as in sqlite:///mlflow.db")
    return Path(name).resolve()
