"""A store in which an expert was approved, recorded and cloned, by the stages themselves; copied for every test."""

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Story:
    folder: Path
    zip: Path  # the SB3 zip that became social_nav-expert/1
    dataset: str  # recorded from it
    collect: str  # the run
    pretrain: str  # the run of the clone


@pytest.fixture(scope="session")
def told(empty_store, tmp_path_factory) -> Story:
    """An imported expert passes the gate, 24 episodes are recorded, a clone is made. Nobody changes this store."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(ROOT)
        from pipeline.config.loading import load_task
        from pipeline.config.training import Network
        from pipeline.policies import build_policy
        from pipeline.policies.sb3 import export_sb3_zip
        from pipeline.stages import run_stage
        from pipeline.tasks import Task
        from pipeline.tracking.datasets import find_dataset_run
        from pipeline.tracking.store import connect

        task = Task(load_task("configs/tasks/social_nav.yaml"))
        somebodys = folder / "theirs.zip"
        policy = build_policy(task.observation_space, task.action_space, Network(hidden=(8,)), seed=3)
        export_sb3_zip(policy, somebodys)
        run_stage("promote", "configs/smoke/promote.yaml", {"expert": str(somebodys)}, {})
        dataset = run_stage("collect", "configs/smoke/collect.yaml", {}, {}).outputs["dataset"]
        short = {"seeds": "[1]", "cloning.epochs": "2"}
        clone = run_stage("pretrain", "configs/smoke/pretrain.yaml", {"dataset": dataset}, short).outputs["policy"]
        collect = find_dataset_run(connect(), dataset, "social_nav").info.run_id
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Story(folder, somebodys, dataset, collect, clone)


@pytest.fixture
def story(told, tmp_path, monkeypatch) -> Story:
    """The story in a store of this test alone (artifacts that were there are shared, and only read)."""
    shutil.copy(told.folder / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(ROOT)
    yield told


@pytest.fixture
def client(story):
    from pipeline.tracking.store import connect

    return connect()
