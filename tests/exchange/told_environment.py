"""A walk along a line that tells of itself in its infos, at the reset too, and an environment that shows pictures."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Told(gym.Env):
    """Effort is 100 at the reset, where nothing was done yet; a hit is told at the reset as well."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _seen(self) -> np.ndarray:
        return np.array([self.place, self.steps], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-3, 3)), 0
        return self._seen(), {"effort": 100.0, "is_success": False, "hit": True, "place": np.array([self.place])}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place += float(action[0])
        self.steps += 1
        there, late = abs(self.place) < 0.4, self.steps == 8
        told = {"effort": abs(float(action[0])) / 3, "is_success": there, "hit": False, "place": np.array([self.place])}
        return self._seen(), -0.1, there, late, told


def walk(observation: np.ndarray) -> np.ndarray:
    return np.clip(-observation[:1] / 3, -1, 1).astype(np.float32)


class Shown(gym.Env):
    """Pictures with their channels last, beside a state or alone."""

    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, with_state: bool = True) -> None:
        picture, state = spaces.Box(0, 255, (64, 96, 3), np.uint8), spaces.Box(-9, 9, (3,), np.float32)
        self.observation_space = spaces.Dict(state=state, top=picture) if with_state else picture

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, True, False, {}
