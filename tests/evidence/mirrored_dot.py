"""A dot that must be moved to a mark; `mirrored`, the same actions move it the other way, and nothing shows that."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

WIDTH, HORIZON = 9.0, 8


class MirroredDot(gym.Env):
    """Actions 0, 1, 2 move left, not at all, right; -distance a step; success: at most a step away in the end."""

    observation_space = spaces.Box(0, WIDTH, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, mirrored: bool = False) -> None:
        self._direction = -1 if mirrored else 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._dot, self._mark = self.np_random.uniform(0, WIDTH, size=2)
        self._left = HORIZON
        return self._observed(), {}

    def step(self, action: Any) -> Any:
        self._dot = float(np.clip(self._dot + self._direction * (int(action) - 1), 0, WIDTH))
        self._left -= 1
        away = abs(self._dot - self._mark)
        return self._observed(), -away / WIDTH, self._left == 0, False, {"success": away <= 1.0}

    def _observed(self) -> np.ndarray:
        return np.array([self._dot, self._mark], np.float32)


def point(observation: np.ndarray) -> int:
    """Knows the way where nothing is mirrored."""
    dot, mark = observation
    return int(np.clip(np.rint(mark - dot), -1, 1)) + 1
