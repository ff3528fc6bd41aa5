"""The smoke pipeline, run once for all tests, and copies of its store that a test may change."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from filelock import FileLock
from project import ROOT, Project, run_everything, uri_of

from pipeline.cli import stage_main


@pytest.fixture(scope="session")
def projects(tmp_path_factory, worker_id) -> tuple[Project, Project]:
    """(the stages one by one, `main`), each in a store of its own; run once for all workers of this session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "end-to-end"
    projects = Project(folder / "staged"), Project(folder / "whole")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            run_everything(*projects)
            for project in projects:
                project.remember()
        for project in projects:
            project.recall()
    return projects


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
def stage(changeable, capfd):
    """Run an entry point in this process on the smoke config: its code, standard output, standard error."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        config = "finetune" if name == "baseline" else name
        capfd.readouterr()
        code = stage_main(name, ["--config", f"configs/smoke/{config}.yaml", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
