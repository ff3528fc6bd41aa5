"""Trials of any rollout length take exactly the same number of environment steps."""

from dataclasses import replace

import pytest

from pipeline.config.loading import load_task, validate
from pipeline.config.training import PPOTraining
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train


def job(files, n_steps, budget=240, exact=True):
    data = {
        "total_timesteps": budget, "n_envs": 4, "network": {"hidden": [4]},
        "ppo": {"n_steps": n_steps, "batch_size": 8, "n_epochs": 1},
        "evaluation": {"segments": [{"every_steps": 80}], "episodes": 4},
    }  # fmt: skip
    training = validate(PPOTraining, data, "test")
    task = load_task(files.folder / "task.yaml")
    return TrainingJob(task, training, 1, str(files.folder / "out"), final_episodes=4, exact_budget=exact)


@pytest.mark.slow
def test_the_budget_is_met_to_the_step(files):
    for n_steps in (7, 10, 13, 60, 61, 500):
        result = train(job(files, n_steps), lambda event: None)
        assert (result.environment_steps, result.evaluations[-1].timestep) == (240, 240), n_steps


def test_the_last_short_rollout_is_trained_on(files):
    updates = []
    train(
        job(files, 25), lambda e: updates.append(e.metrics["train/n_updates"]) if "train/n_updates" in e.metrics else 0
    )
    assert updates[-1] == 3  # rollouts of 100, 100 and 40 steps


def test_a_budget_of_whole_rollouts_gives_the_weights_of_sb3s_own_loop(files):
    exact, plain = (train(job(files, 10, exact=exact), lambda event: None) for exact in (True, False))
    assert exact.last_weights == plain.last_weights


def test_a_budget_that_cannot_be_met_is_refused_with_one_that_can(files):
    with pytest.raises(BadInput, match=r"a budget of 250 steps is no multiple of training.n_envs = 4.*; use 248"):
        train(replace(job(files, 10, budget=250)), lambda event: None)
