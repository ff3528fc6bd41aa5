"""How every environment is called, whoever plays it: recording, replay, evaluation, films, training.

    env = Called(Fresh(env), task="x", scenario="default", longest=20_000)

What goes in is the environment's own and what comes out is the caller's, and no episode goes on for ever.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.errors import BadInput, shortened


class Called(gym.Wrapper[Any, Any, Any, Any]):
    """Gives the environment what `action_space.sample()` would give it, and its observations as fresh NumPy values.

    Raises BadInput for an observation of another size than the space declares, or without one of its keys, and when an
    episode goes on for more than `longest` steps.
    """

    def __init__(self, env: gym.Env[Any, Any], task: str, scenario: str, longest: int) -> None:
        super().__init__(env)
        self._task, self._scenario, self._longest = task, scenario, longest
        self._acts, self._observes = env.action_space, env.observation_space
        self._seed: int | None = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seed, self._steps = seed, 0
        observation, info = self.env.reset(seed=seed, options=options)
        return _as_seen(self._observes, observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._steps >= self._longest:
            raise BadInput(not_ended(self._task, self._scenario, self._seed, self._longest))
        self._steps += 1
        observation, reward, terminated, truncated, info = self.env.step(_as_given(self._acts, action))
        return _as_seen(self._observes, observation), reward, terminated, truncated, info


class Fresh(gym.ObservationWrapper[Any, Any, Any]):
    """Observations as copies: what stacks frames keeps them, and an environment may always give the same array away."""

    def observation(self, observation: Any) -> Any:
        return deepcopy(observation)


def not_ended(task: str, scenario: str, seed: int | None, steps: int) -> str:
    """What is said of an episode that goes on for ever."""
    return (
        f"task {task!r}: the episode of scenario {scenario!r}, seed {seed}, has not ended after {steps:,} steps; set "
        "`horizon` in the task file to the steps after which an episode is cut, or let the environment end it"
    )


def _as_given(space: gym.Space[Any], action: Any) -> Any:
    """A NumPy integer for Discrete, which can look things up; otherwise a fresh array, which may be written to."""
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(action)
    return np.array(action, space.dtype)


def _as_seen(space: gym.Space[Any], observation: Any) -> Any:
    """Arrays, a NumPy integer for Discrete, a mapping of those for a Dict: of the declared dtype and shape, all new."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or space.spaces.keys() - observation.keys():
            raise BadInput(
                f"the environment observes {shortened(observation)}, its space is a mapping of "
                f"{', '.join(space.spaces)}; mend either"
            )
        return {key: _as_seen(part, observation[key]) for key, part in space.spaces.items()}
    seen = np.array(observation, space.dtype)
    if seen.shape != space.shape:
        if space.shape is None or seen.size != math.prod(space.shape):
            raise BadInput(
                f"the environment observes an array of shape {seen.shape}, its space says {space.shape}; mend either"
            )
        seen = seen.reshape(space.shape)
    return seen[()] if isinstance(space, spaces.Discrete) else seen
