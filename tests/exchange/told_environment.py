"""A walk along a line that tells of itself in its infos, at the reset too."""

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
