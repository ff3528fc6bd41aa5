"""What a loss of power must not take back: bytes and names, down to the disk. Everything here raises OSError."""

import os
from pathlib import Path
from typing import IO, Any


def sync(file: IO[Any]) -> None:
    """The bytes that were written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder: files that were made, renamed or removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
