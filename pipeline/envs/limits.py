"""Bounds for actions of an environment that has none: PPO and execution noise need a range to work in.

environment:
  wrappers:
    - name: pipeline.envs.limits:LimitAction
      kwargs: {low: -1.0, high: 1.0}
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class LimitAction(gym.Wrapper[Any, Any, Any, Any]):
    """Declares `low` and `high` (one number, or one each) as the action space; actions themselves pass unchanged.

    Raises ValueError for another action space than a Box, and for bounds that are not finite, empty or outside it.
    """

    def __init__(self, env: gym.Env[Any, Any], low: float | Sequence[float], high: float | Sequence[float]) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, spaces.Box):
            raise ValueError(f"{space} is no Box; its actions are limited already")
        bounds = [np.broadcast_to(np.asarray(bound, space.dtype), space.shape) for bound in (low, high)]
        if not np.isfinite(bounds).all() or (bounds[0] >= bounds[1]).any():
            raise ValueError("low and high must be finite, and low below high")
        if (bounds[0] < space.low).any() or (bounds[1] > space.high).any():
            raise ValueError(f"low and high must lie inside {space}")
        self.action_space = spaces.Box(bounds[0], bounds[1], dtype=space.dtype.type)
