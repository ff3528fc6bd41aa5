"""The task of the dot, and the same demonstrations as numbers and as pictures."""

import pytest
from dot_environment import point_all

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.play.evaluation import record_episodes
from pipeline.play.filming import view_again
from pipeline.tasks import Purpose, Task


def dot_task(use_camera: bool = False, cls: str = "Dot", kwargs: dict | None = None, **changes) -> Task:
    data = {
        "name": "dot",
        "environment": {"id": f"dot_environment:{cls}", "kwargs": kwargs or {}},
        "success": {"info": "success"},
        "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1.0}},
        "camera": {"size": 40, "grayscale": True, "frames": 2},
        **changes,
    }
    return Task(validate(TaskConfig, data, "test"), use_camera=use_camera)


@pytest.fixture(scope="session")
def make_task():
    return dot_task


@pytest.fixture(scope="session")
def recorded():
    """60 episodes with noise in the actions and clean labels, as numbers."""
    task = dot_task()
    return record_episodes(task, point_all, task.episodes("train", 1, 60, Purpose.RECORD), 0.3, 1)


@pytest.fixture(scope="session")
def seen(recorded):
    return view_again(dot_task(use_camera=True), recorded)
