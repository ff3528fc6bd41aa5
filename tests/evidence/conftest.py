"""One whole comparison on the smoke configs, made once, and copies of its store to be spoilt."""

import contextlib
import shutil
import sqlite3

import pytest
from project import GROUP, Project


@pytest.fixture(scope="session")
def finished(projects) -> Project:
    """The store of `main`, to read."""
    return projects[1]


@pytest.fixture
def copied(finished, tmp_path, monkeypatch, in_repository) -> Project:
    """The finished store, this test's own; the artifacts of finished runs are shared and only read."""
    with contextlib.closing(sqlite3.connect(finished.folder / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(finished.folder / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return finished


@pytest.fixture
def runs(copied):
    """`runs(stage, seed)`: ids of the group's runs, newest first."""
    from pipeline.tracking.runs import search
    from pipeline.tracking.store import connect

    def find(stage: str, seed: int | None = None) -> list[str]:
        tags = {"group": GROUP, "stage": stage} | ({} if seed is None else {"seed": str(seed)})
        return [run.info.run_id for run in search(connect(), tags, status=None)]

    return find
