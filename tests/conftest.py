"""What every test runs under: no telemetry, one thread a process, and never the store of the person who runs it."""

import contextlib
import functools
import getpass
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from project import ROOT, Project, make_projects, recall

PROJECTS = {"end_to_end", "evidence"}  # rooms whose tests share one long run, which whoever comes first makes
# they start processes and wait for them
WAITING = {
    "executors", "team", "sweep", "faults", "hostile", "cli", "test_race.py", "test_outage.py", "test_simultaneous.py",
}  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# before anything imports numpy, torch or mlflow: they read these once
os.environ.update(dict.fromkeys(THREADS, "1"))
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
for name in [
    name for name in os.environ if name.startswith(("MLFLOW_RUN", "MLFLOW_EXPERIMENT", "MLFLOW_PROJECT", "PIPELINE_"))
]:
    del os.environ[name]
try:
    getpass.getuser()
except (KeyError, OSError):  # a number without a name, as in many a container
    os.environ["LOGNAME"] = "tester"
STORE = tempfile.TemporaryDirectory(prefix="store-of-tests-")  # until this process ends
os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{STORE.name}/mlflow.db"
os.environ["SB3_LOGDIR"] = STORE.name  # where SB3 alone makes a folder for logs that nobody asked for


@pytest.hookimpl(trylast=True)  # of what `-m` has left
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, and one worker makes the shared projects while the others have something else to do."""
    shared = [item.path for item in items if PROJECTS.intersection(item.path.parts)]

    def rank(item: pytest.Item) -> int:
        if item.path in shared:
            return 0 if item.path == shared[0] else 2
        return 1 if WAITING.intersection(item.path.parts) else 3

    items.sort(key=rank)


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture
def in_repository(monkeypatch):
    """Configs name their task by a path relative to the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session", autouse=True)
def _migrations_are_read_once():
    """MLflow reads all of its own for every store that is opened; a store's revision is held to the newest as ever."""
    from mlflow.store.db import utils

    utils._get_latest_schema_revision = functools.cache(utils._get_latest_schema_revision)


@pytest.fixture(scope="session")
def projects(tmp_path_factory, worker_id, empty_store) -> tuple[Project, Project]:
    """(the stages one by one, `main`), each in a store of its own; made once for all workers of this session.

    With TEST_PROJECTS, a folder, once for all sessions that name it: both tiers of continuous integration.
    """
    base = tmp_path_factory.getbasetemp()
    folder = Path(os.environ.get("TEST_PROJECTS") or (base if worker_id == "master" else base.parent)) / "projects"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make_projects(folder, empty_store)
    return recall(folder / "staged"), recall(folder / "whole")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A prepared SQLite store without runs, to be copied: making one takes seconds, copying it milliseconds."""
    folder = tmp_path_factory.mktemp("empty-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        from pipeline.tracking.store import connect

        connect()
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch) -> Path:
    """A fresh store of this test alone: `store / "mlflow.db"`, artifacts beside it."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    yield folder
