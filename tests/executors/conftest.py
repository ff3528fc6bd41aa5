"""Trainings small enough to be done many times, long enough to lose their node in the middle."""

import pytest

from benchmarks.executors import trainings
from pipeline.executors.side_by_side import run_side_by_side


def make_trainings(folder, count: int = 3, executor: dict | None = None, steps: int = 6000, **task):
    return trainings(count, steps, executor or {}, folder, **task)


@pytest.fixture(scope="session")
def make_jobs():
    return make_trainings


@pytest.fixture(scope="session")
def at_home(make_jobs, tmp_path_factory):
    """What the trainings come to in processes of this machine."""
    return Heard().train(make_jobs(tmp_path_factory.mktemp("local")))


class Heard:
    """What is heard of trainings: digests of their policies, and every point but those of the clock."""

    def __init__(self) -> None:
        self.points: dict[int, list] = {}
        self.notes: list[str] = []
        self.digests: list[tuple[str, str]] = []

    def __call__(self, index, event) -> None:
        if event.metrics:
            numbers = {name: value for name, value in event.metrics.items() if not name.startswith("time/")}
            self.points.setdefault(index, []).append((event.timestep, numbers))
        if event.kind == "note":
            self.notes.append(event.text)

    def train(self, jobs, on_event=lambda index, event: None) -> "Heard":
        def hear(index, event):
            self(index, event)
            on_event(index, event)

        results = run_side_by_side(jobs, 2, hear)
        self.digests = [(result.best_digest, result.last_weights) for result in results]
        return self

    def __eq__(self, other) -> bool:
        return (self.points, self.digests) == (other.points, other.digests)


@pytest.fixture
def heard():
    return Heard
