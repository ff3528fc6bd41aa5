"""Datasets of a few rows, made by hand, for rules that are asked one at a time."""

from typing import Any

import numpy as np
from gymnasium import spaces
from pendulum_dataset import TASK

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.data.spaces import space_to_json
from pipeline.validation.facts import Context, Dataset

TASKED = Context(task=validate(TaskConfig, TASK, "test"))
LINE = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def dataset(
    observations: np.ndarray,
    actions: np.ndarray,
    executed: np.ndarray | None = None,
    *,
    space: spaces.Space = LINE,
    action_space: spaces.Space | None = None,
    truncated: bool = True,
    **metadata: Any,
) -> Dataset:
    """Observations (N, T + 1, *shape) and actions (N, T, *shape) of N episodes of T steps, without rewards."""
    count, steps = len(actions), actions.shape[1]
    ends = np.tile(np.arange(steps) == steps - 1, count)
    flat = actions.reshape(count * steps, *actions.shape[2:])
    arrays = {
        "observations": observations.reshape(count * (steps + 1), *observations.shape[2:]),
        "actions": flat,
        "executed_actions": flat if executed is None else executed.reshape(flat.shape),
        "rewards": np.zeros(count * steps, np.float32),
        "terminations": ends & (not truncated),
        "truncations": ends & truncated,
        "lengths": np.full(count, steps),
        "seeds": np.arange(count),
        "scenarios": np.array(["plain"] * count),
    }
    said = {"observation_space": space_to_json(space), "noise_std": 0.0, "demonstrator": {"kind": "scripted"}}
    said |= {"seeds": [1], "left_out": []}
    if action_space is not None:
        said["action_space"] = space_to_json(action_space)
    return Dataset(arrays, {**said, **metadata})


def findings(rule, data: Dataset, context: Context | None = None) -> list:
    return rule.findings(data, context or Context())


def walk(count: int, steps: int, late: int = 0, width: int = 1) -> Dataset:
    """A point that moves by the executed action, -1, 0 or 1; a third of the actions are replaced by random ones.

    With `late` 1, every row is the one before it: an observation is stored one step after it was seen.
    """
    rng = np.random.default_rng(5)
    clean = rng.integers(0, 3, (count, steps))
    executed = np.where(rng.random(clean.shape) < 0.4, rng.integers(0, 3, clean.shape), clean)
    moved = np.concatenate([np.zeros((count, 1)), np.cumsum(executed - 1, axis=1)], axis=1)
    place = rng.normal(size=(count, 1)) + moved + 0.001 * np.arange(steps + 1)  # a drift: it never comes back
    if late:
        place = np.concatenate([place[:, 1:], place[:, -1:] + 0.5], axis=1)
    rest = rng.normal(size=(count, steps + 1, width - 1))
    observations = np.concatenate([place[:, :, None], rest], axis=2).astype(np.float32)
    space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
    return dataset(observations, clean, executed, space=space, action_space=spaces.Discrete(3), noise_std=0.4)
