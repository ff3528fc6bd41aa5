"""The smoke pipeline, run once for all tests, and copies of its store that a test may change."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from project import ROOT, Project, uri_of

from pipeline.cli import stage_main


@pytest.fixture
def staged(projects, monkeypatch) -> Project:
    """The store of the stages, to read."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(projects[0].folder))
    return projects[0]


@pytest.fixture
def whole(projects, monkeypatch) -> Project:
    """The store of `main`, to read."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(projects[1].folder))
    return projects[1]


@pytest.fixture
def changeable(projects, tmp_path, monkeypatch) -> Path:
    """A copy of the stages' store that a test may write to; artifacts made before are still those of the original."""
    database = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(projects[0].folder / "mlflow.db")) as source:
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(projects[0].folder / "mlflow.db", database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


@pytest.fixture
def stage(changeable, projects, capfd):
    """Run an entry point in this process on the config of the staged project: its code, what it said, its errors."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = stage_main(name, ["--config", str(projects[0].configs[name]), *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
