"""A tiny environment of nobody's task: a lamp that the action switches; it renders, counts its switches and ends."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Lamp(gym.Env):
    """Discrete actions, a two-dimensional observation, 12 steps; the info counts how often the lamp was switched on."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, steps: int = 12, render_mode: str | None = None) -> None:
        self.steps, self.render_mode = steps, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.time, self.lit, self.switched = 0, 0, 0
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        self.switched += int(action == 1 and self.lit == 0)
        self.lit = int(action)
        over = self.time >= self.steps
        info = {"switched": self.switched, "done_well": self.switched > 0}
        return self._observation(), float(self.lit), over, False, info

    def render(self) -> np.ndarray:
        return np.full((80, 120, 3), 240 if self.lit else 60, np.uint8)

    def _observation(self) -> np.ndarray:
        return np.array([self.np_random.uniform(-1, 1), self.lit], np.float32)


class DarkLamp(Lamp):
    """The same without anything to see."""

    metadata = {"render_modes": []}  # noqa: RUF012


def blink(observation: np.ndarray) -> int:
    """Switches by what it sees: on when the first number is positive."""
    return int(observation[0] > 0)
