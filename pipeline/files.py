"""Files: down to the disk, which no loss of power takes back; behind a URI; kernels compiled once a machine."""

import atexit
import fcntl
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, Final

from pipeline.errors import BadInput, shortened

# what readers of JSON, zip, HDF5 and torch's own files raise on damaged content
DAMAGE: Final = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, EOFError,
    MemoryError, RuntimeError, UnpicklingError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
DIGEST_LENGTH: Final = 36  # what MLflow keeps of a dataset's digest; one length for all


@contextmanager
def readable(told: str, *more: type[Exception], kind: bool = False) -> Iterator[None]:
    """Raises BadInput for what readers raise on damaged content: what is told, with `kind` its type, and its text."""
    try:
        yield
    except DAMAGE + more as error:
        named = f"{type(error).__name__}: " if kind else ""
        raise BadInput(f"{told}: {named}{shortened(str(error))}") from None


def digest(*parts: bytes | str) -> str:
    """SHA-256 over the parts, one after the other, as hexadecimal cut to 36 characters."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode() if isinstance(part, str) else part)
    return whole.hexdigest()[:DIGEST_LENGTH]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's, with its cache where it finds a place to write it; on a disk that takes nothing without."""
    from numba import njit  # what asks the store a question need not wait for it

    try:
        return njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available"
        return njit(error_model="numpy")(function)


SCRATCH = "imitation-pretraining-"  # how the temporary folders of our processes begin
ALIVE = "lock"  # a file in each, locked for as long as its process lives


@cache
def scratch() -> Path:
    """This process's folder for temporary files. It goes with the process; a killed one's goes when the next asks here.

    Raises OSError.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        try:
            if left.lstat().st_uid != os.getuid() or left.is_symlink():
                continue
            with (left / ALIVE).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # its process lives, or somebody else removes it
            continue
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
    lock = os.open(folder / "new", os.O_CREAT | os.O_RDWR)  # never closed: the system does, however the process ends
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(folder / "new", folder / ALIVE)  # under this name it is never seen unlocked
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


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


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Where to write a new file or folder, beside it: it is seen as a whole or not at all. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as folder:
        written = Path(folder) / target.name
        yield written
        written.rename(target)


def write_folder(
    folder: Path, files: Mapping[str, bytes | Callable[[IO[bytes]], object]], replace: bool = False
) -> None:
    """A folder of these files, down to the disk, as a whole or not at all; with `replace` in the place of an old one.

    Names may lead into folders below it.

    A failure leaves the old one, a crash one of the two, as `.<name>.old-<process>` at worst. Raises OSError, also for
    a folder that holds anything and is not to be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, stale = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            with open(fresh / name, "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                sync(file)
        for made in dict.fromkeys([*((fresh / name).parent for name in files), fresh]):
            sync_folder(made)
        if replace and folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
    except BaseException:
        if stale.exists():
            stale.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(stale, ignore_errors=True)


def copy_folder(source: Path | str, target: Path) -> Path:
    """A copy of a folder, which is seen as a whole or not at all; one that is there stays. Raises OSError."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            shutil.copytree(source, fresh, dirs_exist_ok=True)
            os.rename(fresh, target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return target


def strict_json(content: bytes | str) -> Any:
    """JSON that means the same to every reader: no key twice, and no NaN, infinity or number that becomes one.

    Raises ValueError, for what is nested too deeply as well.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(f"{text} is no JSON number")
        return float(text)

    try:
        return json.loads(content, object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise ValueError(str(error)) from None


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
