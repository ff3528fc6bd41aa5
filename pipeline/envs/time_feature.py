"""The share of an episode that remains, as one more number of the observation.

environment:
  wrappers:
    - name: pipeline.envs.time_feature:TimeFeature

What sb3-contrib's TimeFeatureWrapper gives (Pardo et al. 2018, Time Limits in Reinforcement Learning), which many
agents of the RL Zoo were trained behind.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class TimeFeature(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Appends 1 - t / `max_steps` to a flat Box observation; `max_steps` None: the environment's own time limit.

    Raises ValueError for any other observation, and without a limit.
    """

    def __init__(self, env: gym.Env[np.ndarray, Any], max_steps: int | None = None) -> None:
        super().__init__(env)
        space, limit = env.observation_space, max_steps or getattr(env.spec, "max_episode_steps", None)
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"{space} is no flat Box; nothing can be appended to it")
        if not limit or limit < 1:
            raise ValueError("the environment has no time limit; give max_steps")
        low, high = (np.append(bound, end) for bound, end in ((space.low, 0.0), (space.high, 1.0)))
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)
        self._limit, self._step = int(limit), 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """An episode begins: all of it remains."""
        self._step = 0
        observation, info = self.env.reset(**kwargs)
        return self._with_time(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """As the environment, with what remains after this step."""
        self._step += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_time(observation), reward, terminated, truncated, info

    def _with_time(self, observation: np.ndarray) -> np.ndarray:
        return np.append(observation, 1 - self._step / self._limit).astype(self.observation_space.dtype)
