"""A hand on a table, in millimetres: what is observed, what is done and what is earned are all in hundreds."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

REACH = 120.0  # millimetres in a step


class Table(gym.Env[np.ndarray, np.ndarray]):
    """Go where the goal is; an action is the place to go to."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 512.0, (4,), np.float64)
        self.action_space = spaces.Box(0.0, 512.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._hand, self._goal = self.np_random.uniform(0, 512, (2, 2))
        self._steps = 0
        return np.concatenate([self._hand, self._goal]), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        way = np.asarray(action, np.float64) - self._hand
        self._hand = self._hand + way * min(1.0, REACH / (float(np.linalg.norm(way)) + 1e-9))
        self._steps += 1
        distance = float(np.linalg.norm(self._goal - self._hand))
        seen = np.concatenate([self._hand, self._goal])
        return seen, -distance, False, self._steps >= 8, {"is_success": distance < 40}


def straight(observation: np.ndarray) -> np.ndarray:
    """The demonstrator."""
    return np.asarray(observation[2:], np.float32)
