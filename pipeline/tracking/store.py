"""The store behind the tracking URI: prepared once, before anything runs in parallel."""

import contextlib
import hashlib
import logging
import os
import shlex
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from pipeline.errors import BadInput, disk_refusal, shortened
from pipeline.files import digest, sqlite_file, sync_folder
from pipeline.tracking.views import VIEW_TAGS

T = TypeVar("T")

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_SECONDS = 10.0
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
MAY_PASS = (401, 403, 407, 408, 425, 429)  # HTTP: what a password, or time, may mend
DENIED = "PERMISSION_DENIED"  # by a server that knows its users
HALF_MADE = ("already exists", "duplicate column")  # what SQLite says when MLflow begins with its tables anew
DEFAULT_EXPERIMENT = "imitation-pretraining"
# what the UI shows of an experiment; without a kind it is taken for one of prompts and traces
EXPERIMENT_KIND = "mlflow.experimentKind"
ABOUT_EXPERIMENT = {
    EXPERIMENT_KIND: "custom_model_development",
    MLFLOW_RUN_NOTE: """\
Imitation pre-training of PPO policies: demonstrations are cloned and fine-tuned, and held against PPO from scratch on
matched seeds.

**Order of the stages:** `train_expert` → `promote` (the gate) → `collect` → `pretrain` → `finetune` and `baseline` →
`compare`. A run of `main` holds them all; trainings of single seeds are nested in the run of their stage.

**Look first** at a run of `main`: its description, the tag `verdict`, the metrics `sample_efficiency/ratio` and
`final/…`; then at `report/report.html` among the artifacts of its `compare`. Settings are parameters (`cfg.…`, `arm`,
`arm.…`, `seed`), datasets are inputs, and tags `lineage.…` name what a run was made from. `Views` holds what `main`
came to, the arms of comparisons, trainings by success, and, behind the chart symbol, success and films by step.
""",
    **VIEW_TAGS,
}


def connect() -> MlflowClient:
    """A client of the configured store; a fresh SQLite one is created here, in WAL mode, with its folder.

    Raises BadInput when the store cannot be reached, and what the system raises when it refuses to write.
    """
    uri = mlflow.get_tracking_uri()
    database = sqlite_file(uri)
    if database is not None and (plain := _unquoted(uri)) != uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri = plain
    # retries of an unreachable server would hold a user for minutes before the first line
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # they write of every failing statement, besides raising it: what is raised is told in one line
    for writer in ("mlflow.store.db.utils", "psycopg"):
        logging.getLogger(writer).setLevel(logging.CRITICAL)
    try:
        if database is not None:
            if database.is_dir():
                raise IsADirectoryError(f"{database} is a folder; name a file in it")
            database.parent.mkdir(parents=True, exist_ok=True)
        _require_listener(uri)
        with exclusive("create"):
            if database is not None and not database.exists():
                _create(uri, database)
            client = MlflowClient()
            client.search_experiments(max_results=1)
            if database is not None:
                with contextlib.closing(sqlite3.connect(database)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
    except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error, ValueError, ImportError) as error:
        if disk_refusal(error) is not None:
            raise
        advice = "check MLFLOW_TRACKING_URI and that the server is running"
        if any(words in str(error) for words in HALF_MADE):
            advice = (
                "another process makes this store now: give the command again, and next time make it first: "
                "python -m pipeline store. If it says so again, MLflow was interrupted there and it holds no runs: "
                "delete the file"
            )
        raise BadInput(
            f"tracking store {shortened(uri)} cannot be used: {shortened(str(error), 200)}; {advice}"
        ) from None
    return client


def _create(uri: str, database: Path) -> None:
    """A new SQLite store, whole or not at all: MLflow takes seconds to make its tables, and cannot go on with half."""
    new = database.with_name(f"{database.name}.new")
    for part in ("-journal", "-wal", "-shm", ""):  # of a process that was killed here; its journal before its file
        Path(f"{new}{part}").unlink(missing_ok=True)
    elsewhere = make_url(uri).set(database=str(new)).render_as_string(hide_password=False)
    MlflowClient(_unquoted(elsewhere)).search_experiments(max_results=1)
    os.replace(new, database)
    sync_folder(database.parent)


def _unquoted(uri: str) -> str:
    """The URI with its path as the file system has it, where that names the same file.

    MLflow makes a folder of whatever stands there, `a%20b` too, which is how its own default writes `a b`.
    """
    path, mark, query = uri.partition("?")
    plain = f"{unquote(path)}{mark}{query}"
    return plain if sqlite_file(plain) == sqlite_file(uri) else uri


def _require_listener(uri: str) -> None:
    """Raise OSError when nothing listens at a database server: MLflow itself would try again for hours."""
    usual = DATABASE_PORTS.get(urlparse(uri).scheme.partition("+")[0])
    if usual is not None and (server := make_url(uri)).host:  # whose passwords may hold what an address may not
        socket.create_connection((server.host, server.port or usual), timeout=CONNECT_SECONDS).close()


def refuses(error: Exception) -> bool:
    """The store, or what takes artifacts for it, answered and will not do this however often it is asked.

    Any other error may pass.
    """
    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    status = getattr(getattr(error, "response", None), "status_code", 0)  # of `requests`: a proxy may be stricter
    return 400 <= status < 500 and status not in MAY_PASS


@contextlib.contextmanager
def refused_as(line: str) -> Iterator[None]:
    """What the store refuses in the block is told by this line. Raises BadInput, and any other error as it is."""
    try:
        yield
    except MlflowException as error:
        if not refuses(error):
            raise
        raise BadInput(line) from None


@contextlib.contextmanager
def permitted(doing: str) -> Iterator[None]:
    """What the server does not let this user do is told in one line. Raises BadInput, and any other error as it is."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != DENIED:
            raise
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        raise BadInput(
            f"{doing}: MLFLOW_TRACKING_USERNAME = {shortened(user)} may not do that ({shortened(str(error), 300)}); "
            "ask who runs the server for the permission"
        ) from None


def unanswered(error: BaseException) -> bool:
    """The store gave no answer: it is stopped, hangs, or cannot be reached."""
    if disk_refusal(error) is not None:  # of a SQLite store: that is an answer
        return False
    if isinstance(error, OperationalError | ConnectionError):
        return True
    if not isinstance(error, MlflowException) or isinstance(error, RestException) or error.error_code == DENIED:
        return False
    # MLflow has no type of its own for a request without an answer
    return "API request to" in str(error) or error.error_code == "TEMPORARILY_UNAVAILABLE"


def chosen_experiment(client: MlflowClient, name: str | None) -> str:
    """The experiment to open a run in: of that name, or the one that the environment chooses. Raises BadInput."""
    if name is not None:
        return experiment_id(client, name)
    chosen, number = (os.environ.get(f"MLFLOW_EXPERIMENT_{kind}", "") for kind in ("NAME", "ID"))
    by_name = experiment_id(client, chosen, "MLFLOW_EXPERIMENT_NAME") if chosen else None
    if not number:
        return by_name or experiment_id(client, DEFAULT_EXPERIMENT)
    what = f"MLFLOW_EXPERIMENT_ID = {shortened(number)}"
    with refused_as(f"{what}: the store has no such experiment; unset it or name another one"):
        found = client.get_experiment(number)
    if found.lifecycle_stage != "active":
        raise BadInput(f"{what}: that experiment was deleted; restore it, unset it or name another one")
    if by_name not in (None, number):
        raise BadInput(f"{what} is not the number of MLFLOW_EXPERIMENT_NAME = {shortened(chosen)}; unset one of them")
    return str(found.experiment_id)


def experiment_id(client: MlflowClient, name: str, setting: str = "experiment_name") -> str:
    """The experiment of that name, created with an explicit artifact folder when the store is a local file.

    Raises BadInput, which names the setting, for a name that was deleted or that the store refuses.
    """
    what = f"{setting} = {shortened(name)}"
    with exclusive("create"):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise BadInput(f"{what}: that experiment was deleted; restore it or choose another name")
            return str(found.experiment_id)
        database = sqlite_file(mlflow.get_tracking_uri())
        location = (database.parent / "mlartifacts" / name).as_uri() if database is not None else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=ABOUT_EXPERIMENT))
        except MlflowException as error:
            raise BadInput(f"{what} is refused by the store: {shortened(error.message)}") from None


def present_experiment(client: MlflowClient, experiment: str) -> None:
    """Tell the UI that an experiment is one of machine learning, and describe it; what a person chose there stays."""
    tags = client.get_experiment(experiment).tags
    guessed = {key for key, value in tags.items() if key == EXPERIMENT_KIND and "inferred" in value}  # by the UI
    missing = {key: value for key, value in ABOUT_EXPERIMENT.items() if key in guessed or not tags.get(key)}
    if missing:
        with exclusive("create"):
            for key, value in missing.items():
                client.set_experiment_tag(experiment, key, value)


def local_folder(kind: str) -> Path:
    """Where this machine keeps what is not in the configured store, e.g. `checkpoints`.

    Beside a SQLite file; for a server in the user's state folder, or in the one that `PIPELINE_<KIND>` names.
    """
    uri = mlflow.get_tracking_uri()
    database = sqlite_file(uri)
    if database is not None:
        return database.with_name(f"{database.name}.{kind}")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "imitation-pretraining"
    place = Path(os.environ.get(f"PIPELINE_{kind.upper()}") or state / kind).resolve()
    return place / digest(uri.rstrip("/"))[:16]


@contextlib.contextmanager
def exclusive(purpose: str) -> Iterator[None]:
    """One process at a time per store and purpose, by a lock that dies with its holder.

    For a SQLite store a file beside it. For PostgreSQL a lock in that database, so that it holds between machines. For
    a server a file in this machine's temporary folder: its clients have no lock in common, so this serialises the
    processes of one machine only.
    """
    uri = mlflow.get_tracking_uri()
    if urlparse(uri).scheme.partition("+")[0] == "postgresql":
        name = hashlib.sha256(f"imitation-pretraining {purpose}".encode()).digest()
        key = int.from_bytes(name[:8], "big", signed=True)  # as PostgreSQL takes them; the same on every machine
        # without a transaction, which a server may end for idling; the lock is the session's: it ends with this
        # connection, however the process ends
        connection = create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
            yield
        finally:
            with contextlib.suppress(OperationalError):  # it is gone already
                connection.close()
        return
    database = sqlite_file(uri)
    if database is not None:
        path = database.with_name(f"{database.name}.{purpose}.lock")
    else:
        path = Path(tempfile.gettempdir()) / f"mlflow-{digest(uri)[:16]}.{purpose}.lock"
    # for whoever else works with this store here, whatever this user's umask; filelock follows no link that lies there
    with FileLock(path, mode=0o666).acquire(poll_interval=0.01):
        yield


def refuse_tracking_store(storage: str) -> None:
    """A study keeps its own tables, and its own version of them: it cannot share a database with the runs.

    Raises BadInput.
    """
    uri = mlflow.get_tracking_uri()
    if storage == uri or (sqlite_file(uri) is not None and sqlite_file(uri) == sqlite_file(storage)):
        raise BadInput(f"storage {storage!r} is the tracking store; give the study a database of its own")


def pages(search: Callable[..., PagedList[T]], *arguments: Any, **options: Any) -> Iterator[T]:
    """Everything that one of MLflow's searches finds; each gives a page at a time, of 1,000 or 100 things."""
    token: str | None = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def run_address(run: Run) -> str | None:
    """Where a run can be looked at, when the store is a server: `http://host/#/experiments/1/runs/0a1b...`."""
    server = urlparse(mlflow.get_tracking_uri())
    if server.scheme not in ("http", "https"):
        return None
    host = server.netloc.rpartition("@")[2]  # never a name and password
    server_address = f"{server.scheme}://{host}{server.path.rstrip('/')}"
    return f"{server_address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def how_to_look(address: str) -> str:
    """What a person types and opens to look at a page of the store's UI; `address`: what stands behind the server's."""
    uri = mlflow.get_tracking_uri()
    if urlparse(uri).scheme in ("http", "https"):
        return f"open {uri.rstrip('/')}/{address}"
    port = os.environ.get("MLFLOW_PORT", "5000")  # what `mlflow ui` reads
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}, then open http://127.0.0.1:{port}/{address}"
