"""Sweeps over an environment whose outcomes are known, small enough to be run for real."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
BUDGET = 240

sys.path.insert(0, str(FOLDER))  # trainings import the environment by name


class Files:
    """Task, base config and sweep config in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = f"sqlite:///{folder}/sweep.db"

    def write(self, name: str, data: dict) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(data))
        return path

    def task(self, **changes) -> Path:
        data = {
            "name": "fated",
            "environment": {"id": "sweep_environment:Fated"},
            "success": {"info": "success"},
            "collision": {"info": "collision"},
            "thresholds": {"success_rate": {"min": 0.9}},
            "scenarios": {"default": {}},
            "scenario_sets": {"train": {"default": 1}},
            **changes,
        }
        return self.write("task.yaml", data)

    def base(self, **training) -> Path:
        data = {
            "task": str(self.folder / "task.yaml"),
            "seeds": [1, 2, 3],
            "final_episodes": 50,
            "training": {
                "total_timesteps": BUDGET,
                "n_envs": 4,
                "network": {"hidden": [4]},
                "ppo": {"n_steps": 10, "batch_size": 8, "n_epochs": 1},
                "evaluation": {"segments": [{"every_steps": 80}], "episodes": 50},
                **training,
            },
        }
        return self.write("train_expert.yaml", data)

    def sweep(self, **changes) -> Path:
        data = {
            "base": str(self.folder / "train_expert.yaml"),
            "study_name": "known",
            "storage": self.storage,
            "trials": 4,
            "workers": 2,
            "best_k": 2,
            "fresh_seeds": [101],
            "search_space": {"training.environment.skill": {"type": "float", "low": 0.1, "high": 0.9}},
            "objective": {"name": "final_eval", "metric": "success_rate"},
            "pruner": {"name": "none"},
            **changes,
        }
        return self.write("sweep.yaml", data)


@pytest.fixture
def files(tmp_path) -> Files:
    made = Files(tmp_path)
    made.task()
    made.base()
    return made


@pytest.fixture(scope="session")
def subprocess_environment() -> dict[str, str]:
    """For entry points in processes of their own."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER}"}


@pytest.fixture
def store_of(store):
    """What a sweep left in the tracking store."""
    from pipeline.tracking.runs import search
    from pipeline.tracking.store import connect

    def read() -> SimpleNamespace:
        client = connect()

        def runs(stage: str):
            return search(client, {"stage": stage}, status=None)

        return SimpleNamespace(client=client, runs=runs)

    return read
