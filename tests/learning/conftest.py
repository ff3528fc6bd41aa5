"""Small tasks with known environments that the tests of learning train on."""

import sys
from pathlib import Path

import pytest

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import PPOTraining

sys.path.insert(0, str(Path(__file__).parent))  # trainings import the environments by name


def task_config(env_id: str, **changes) -> TaskConfig:
    data = {
        "name": "known",
        "environment": {"id": env_id},
        "success": {"return_at_least": 100.0},
        "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1.0}},
        **changes,
    }
    return validate(TaskConfig, data, "test")


def training_config(**changes) -> PPOTraining:
    """Rollouts of 4 x 64 = 256 steps, an evaluation at the first rollout boundary after every 400."""
    data = {
        "total_timesteps": 1000,
        "n_envs": 4,
        "network": {"hidden": [16]},
        "ppo": {"n_steps": 64, "batch_size": 64, "n_epochs": 2},
        "evaluation": {"segments": [{"every_steps": 400}], "episodes": 5},
        **changes,
    }
    return validate(PPOTraining, data, "test")


@pytest.fixture(scope="session")
def cartpole():
    return task_config("CartPole-v1", horizon=100)


@pytest.fixture(scope="session")
def pendulum():
    return task_config("Pendulum-v1", horizon=50)


@pytest.fixture(scope="session")
def make_task():
    return task_config


@pytest.fixture(scope="session")
def make_training():
    return training_config
