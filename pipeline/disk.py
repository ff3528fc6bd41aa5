"""Bytes and names down to the disk, which no loss of power takes back; kernels that are compiled once a machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


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
