"""How a person names a thing of the store, and this machine's copies of the artifacts behind it."""

import contextlib
import functools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import BadInput, shortened
from pipeline.files import scratch
from pipeline.tracking.store import unanswered

RUNS = "runs:/"
PATTERN = re.compile(
    r"""(?P<latest>latest) | (?P<run_id>[0-9a-f]{32}) | (?P<dataset_id>[a-z][a-z0-9_]*-[0-9a-z-]{4,64})
    | (?:models:/)?(?P<model>[A-Za-z0-9_.-]+)(?:/(?P<version>[0-9]{1,9})|@(?P<alias>[A-Za-z][A-Za-z0-9_-]*))
    | (?P<number>[0-9]{1,9})""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Reference:
    """What a text may name; all None for one that names nothing of the store.

    `models:/walk-expert/3` -> model `walk-expert`, version `3`; `walk-expert@approved` -> model and alias;
    `walk-0a1b2c3d` -> dataset id; 32 hexadecimal digits -> run id; `3` -> number, of a version of the model at hand.
    """

    latest: str | None = None
    run_id: str | None = None
    dataset_id: str | None = None
    model: str | None = None
    version: str | None = None
    alias: str | None = None
    number: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        match = PATTERN.fullmatch(text)
        return cls() if match is None else cls(**match.groupdict())


@contextlib.contextmanager
def fetching(what: str) -> Iterator[None]:
    """What cannot be fetched in the block is one line: BadInput. A store that gives no answer raises what it raises."""
    try:
        yield
    except (MlflowException, OSError, UnicodeDecodeError) as error:
        if unanswered(error):
            raise
        raise BadInput(f"{what} cannot be fetched: {shortened(str(error))}") from None


def fetched(uri: str, what: str) -> Path:
    """This process's copy of an artifact that never changes, or of a folder of them; fetched once, whoever asks.

    Raises BadInput: `what` cannot be fetched.
    """
    with fetching(what):
        return _copy(mlflow.get_tracking_uri(), uri)


@functools.cache
def _copy(store: str, uri: str) -> Path:
    return _download(uri, tempfile.mkdtemp(prefix="artifact-", dir=scratch()))


@contextlib.contextmanager
def downloaded(uri: str, what: str) -> Iterator[Path]:
    """An artifact as it is now, to be read at once: the copy goes with the block. Raises BadInput as `fetched` does."""
    with fetching(what), tempfile.TemporaryDirectory(prefix="artifact-", dir=scratch()) as place:
        yield _download(uri, place)


def _download(uri: str, place: str) -> Path:
    if uri.startswith(RUNS):  # MLflow's own way of these tells a full disk that the path is not correct
        run_id, _, path = uri.removeprefix(RUNS).partition("/")
        uri = f"{MlflowClient().get_run(run_id).info.artifact_uri}/{path}"
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=place))
    except (MlflowException, SQLAlchemyError, OSError):
        raise
    except Exception as error:  # a place of any other kind, or a malformed one, raises whatever its reader happens to
        raise MlflowException(f"{shortened(uri)}: {type(error).__name__}: {error}") from error
