"""A point on a line that must be moved to a mark: continuous actions, eight steps, learnt in a second."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

STRIDE = 0.5


class Seek(gym.Env):
    """Observes point and mark; the reward is minus their distance; success is to end within 0.1 of the mark."""

    observation_space = spaces.Box(-2, 2, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.time, (self.point, self.mark) = 0, self.np_random.uniform(-1, 1, 2)
        return self._observed(), {}

    def step(self, action):
        self.time += 1
        self.point = float(np.clip(self.point + STRIDE * float(action[0]), -2, 2))
        distance = abs(self.point - self.mark)
        return self._observed(), -distance, False, self.time == 8, {"success": distance < 0.1}

    def _observed(self) -> np.ndarray:
        return np.array([self.point, self.mark], np.float32)


class Unseen(Seek):
    """Declares pictures, and has no screen to draw them on."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self):
        raise OSError("no screen")


def seek(observation: np.ndarray) -> np.ndarray:
    """Straight to the mark."""
    return np.clip((observation[1:] - observation[:1]) / STRIDE, -1, 1)


def fidget(observation: np.ndarray) -> np.ndarray:
    """Moves to and fro, wherever the mark is."""
    return 0.2 * np.sin(50 * observation[:1])
