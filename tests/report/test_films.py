"""Pictures of a policy in training: drawn where they can be, refused before the first step where they cannot."""

from pathlib import Path

import imageio.v3 as imageio
import pytest

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import EvaluationSchedule, Network, PPOTraining, Segment
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.ppo import train
from pipeline.report.progress import TrainingProgress


def job(tmp_path: Path, environment: str, every: int) -> TrainingJob:
    task = {
        "name": "filmed",
        "environment": {"id": environment},
        "success": {"return_at_least": 0.0},
        "thresholds": {"success_rate": {"min": 0.5}},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1}},
        "horizon": 10,
    }
    training = PPOTraining(
        total_timesteps=192,
        n_envs=2,
        network=Network(hidden=(4,)),
        ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 1},
        evaluation=EvaluationSchedule(segments=(Segment(every_steps=64),), episodes=2),
        visualize_every=every,
    )
    return TrainingJob(validate(TaskConfig, task, "test"), training, 1, str(tmp_path / "out"), final_episodes=2)


def test_a_film_at_the_first_evaluation_from_every_so_many_steps_on(tmp_path):
    filmed = job(tmp_path, "CartPole-v1", 100)
    with TrainingProgress("test", [filmed]) as progress:
        result = train(filmed, lambda event: progress.on_event(0, event))
    assert [point.timestep for point in result.evaluations] == [0, 64, 128, 192]
    films = sorted((tmp_path / "out" / "playback").iterdir())
    assert [film.name for film in films] == ["step-000000000.gif", "step-000000128.gif"]
    assert len(imageio.imread(films[0], index=None)) > 5  # frames
    silent = job(tmp_path / "silent", "CartPole-v1", 0)
    assert train(silent, lambda event: None).last_weights == result.last_weights  # looking changes nothing
    assert not (tmp_path / "silent" / "out" / "playback").exists()


def test_what_cannot_be_drawn_is_refused_before_the_first_step(tmp_path):
    TrainingProgress("test", [job(tmp_path, "undrawable:Undrawable", 0)])  # nothing is to be drawn
    undrawable = job(tmp_path, "undrawable:Undrawable", 10)
    with pytest.raises(BadInput, match=r"visualize_every = 10.*no render mode rgb_array"):
        TrainingProgress("test", [undrawable])
