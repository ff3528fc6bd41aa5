"""Bounds that an environment lacks, for its actions, or declares too narrow, for its observations.

PPO and execution noise need a range of actions to work in; validation holds observations to what is declared.

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


class DeclareObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Declares wider bounds for a Box observation, for some `elements` of it, or for one `key` of a Dict.

    environment:
      wrappers:
        - name: pipeline.envs.limits:DeclareObservation
          kwargs: {low: -1.0, high: 1.0, elements: [36, 37, 38]}  # a goal that is declared to be [0, 0]

    A bound of null is none. The observations pass unchanged; `elements` are counted in C order. Raises ValueError for
    what is no Box of floats, for elements that it lacks, and for bounds that do not hold those declared: a declaration
    that is too narrow is mended, no claim is made.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        low: float | None,
        high: float | None,
        elements: Sequence[int] | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(env)
        parts = dict(env.observation_space.spaces) if isinstance(env.observation_space, spaces.Dict) else {}
        space = env.observation_space if key is None else parts.get(key)
        if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
            raise ValueError(f"{env.observation_space} has no Box of floats{'' if key is None else f' under {key!r}'}")
        chosen = np.arange(space.low.size) if elements is None else np.asarray(elements)
        if chosen.dtype.kind != "i" or not ((chosen >= 0) & (chosen < space.low.size)).all():
            raise ValueError(f"elements must be from 0 to {space.low.size - 1}")
        bounds = space.low.copy(), space.high.copy()
        bounds[0].flat[chosen] = -np.inf if low is None else low
        bounds[1].flat[chosen] = np.inf if high is None else high
        if (bounds[0] > space.low).any() or (bounds[1] < space.high).any():
            raise ValueError(f"low and high must hold what {space} declares")
        mended = spaces.Box(*bounds, dtype=space.dtype.type)
        self.observation_space = mended if key is None else spaces.Dict({**parts, key: mended})
