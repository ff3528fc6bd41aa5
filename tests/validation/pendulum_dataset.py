"""A good dataset, recorded from a real environment: Pendulum with a scripted controller and execution noise."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from pipeline.config.loading import validate as validate_config
from pipeline.config.task import TaskConfig
from pipeline.data import DatasetMetadata, Trajectories, concatenate, content_digest
from pipeline.data.spaces import space_to_json
from pipeline.tasks import Purpose, Task
from pipeline.validation.facts import Approval, Context
from pipeline.validation.replay import TaskReplay

HORIZON = 40
NOISE = 0.2
TASK = {
    "name": "swing",
    "environment": {"id": "Pendulum-v1"},
    "success": {"return_at_least": -150.0},
    "thresholds": {"success_rate": {"min": 0.5}},
    "scenarios": {"normal": {"g": 10.0}, "light": {"g": 5.0}, "heavy": {"g": 20.0}},
    "scenario_sets": {"train": {"normal": 2.0, "light": 1.0}, "holdout": {"heavy": 1.0}},
    "holdout_sets": ["holdout"],
    "horizon": HORIZON,
}
DIGEST = "0123456789abcdef0123456789abcdef0123"


@dataclass(frozen=True)
class Recorded:
    task: Task
    trajectories: Trajectories
    metadata: DatasetMetadata
    context: Context  # without re-simulation
    replay: TaskReplay


def controller(observation: np.ndarray) -> np.ndarray:
    """Brakes the pendulum and pulls it up: smooth, bounded, never constant."""
    cosine, sine, speed = observation
    return np.clip([-1.5 * sine - 0.3 * speed * cosine], -2, 2).astype(np.float32)


def act(observations: np.ndarray) -> np.ndarray:
    """The controller for a batch."""
    return np.stack([controller(observation) for observation in observations])


def record(task: Task, noise: float, episodes: int) -> Trajectories:
    """By a plain loop, not by the product's own."""
    parts = []
    environments = {name: task.make_env(name) for name in task.config.scenarios}
    for episode in task.episodes("train", 42, episodes, Purpose.RECORD):
        rng, env = np.random.default_rng(episode.seed), environments[episode.scenario]
        seen, labels, executed, rewards, over = [env.reset(seed=episode.seed)[0]], [], [], [], False
        while not over:
            labels.append(controller(seen[-1]))
            noisy = np.clip(labels[-1] + rng.normal(0, 2 * noise, 1), -2, 2).astype(np.float32)
            executed.append(noisy if noise else labels[-1])
            after, reward, terminated, truncated, _ = env.step(executed[-1])
            seen.append(after)
            rewards.append(float(reward))
            over = terminated or truncated
        ended = np.arange(len(rewards)) == len(rewards) - 1
        figures = {"length": len(rewards), "return": sum(rewards), "success": sum(rewards) >= -150}
        parts.append(
            Trajectories(
                np.array(seen),
                np.array(labels),
                np.array(executed),
                np.array(rewards, np.float32),
                terminations=ended & (not truncated),
                truncations=ended & truncated,
                lengths=np.array([len(rewards)]),
                seeds=np.array([episode.seed]),
                scenarios=np.array([episode.scenario]),
                metrics={name: np.array([value], np.float64) for name, value in figures.items()},
            )
        )
    return concatenate(parts)


def describe(task: Task, trajectories: Trajectories, noise: float, **changes) -> DatasetMetadata:
    names, counts = np.unique(trajectories.scenarios, return_counts=True)
    facts = {
        "dataset_id": "swing-20260101-000000",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "task": task.config.name,
        "scenario_set": "train",
        "scenario_coverage": {str(name): int(count) for name, count in zip(names, counts, strict=True)},
        "requested_shares": task.shares("train"),
        "demonstrator": {"kind": "expert", "name": "swing-expert", "version": "3", "digest": DIGEST},
        "seeds": (42,),
        "noise_std": noise,
        "filter": {"min_return": None, "only_success": False},
        "observation_space": space_to_json(task.observation_space),
        "action_space": space_to_json(task.action_space),
        "environment": {"id": "Pendulum-v1", "kwargs": {}, "scenarios": dict(task.config.scenarios)},
        "holdout_scenarios": tuple(sorted(task.config.holdout_scenarios())),
        "episodes": len(trajectories),
        "steps": trajectories.steps,
        "content_digest": content_digest(trajectories),
        "run_id": "a" * 32,
        "git_commit": "b" * 40,
        "git_dirty": False,
        "horizon": HORIZON,
        "requested_episodes": len(trajectories),
    }
    return DatasetMetadata(**{**facts, **changes})


def recorded(noise: float) -> Recorded:
    task = Task(validate_config(TaskConfig, TASK, "test"))
    trajectories = record(task, noise, episodes=30)
    context = Context(
        task=task.config,
        observation_space=task.observation_space,
        action_space=task.action_space,
        approvals=(
            Approval("2", "f" * 36, "2025-06-01T00:00:00Z", "2025-12-01T00:00:00Z"),
            Approval("3", DIGEST, "2025-12-01T00:00:00Z"),
        ),
    )
    return Recorded(task, trajectories, describe(task, trajectories, noise), context, TaskReplay(task))
