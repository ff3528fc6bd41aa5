"""A dot that must be moved to a mark, small and quick to draw; its pictures can be worked out by hand."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

PLACES = 10  # of 8 pixels each
SIDE = 8 * PLACES
HORIZON = 8


class Dot(gym.Env):
    """Actions 0, 1, 2 move left, not at all, right; -1 a step for the distance; ends after HORIZON steps.

    The dot is white in the upper half of the picture, the mark red in the lower one. With `pixels` the observation is
    the picture itself, as environments with pictures of their own have it; `blank` draws nothing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    action_space = spaces.Discrete(3)

    def __init__(self, render_mode: str | None = None, pixels: bool = False, blank: bool = False) -> None:
        self.render_mode, self._pixels, self._blank = render_mode, pixels, blank
        state = spaces.Box(0, PLACES - 1, (2,), np.float32)
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8) if pixels else state

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.dot, self.mark = (int(place) for place in self.np_random.integers(PLACES, size=2))
        self._left = HORIZON
        return self._observed(), {}

    def step(self, action: Any) -> Any:
        self.dot = int(np.clip(self.dot + int(action) - 1, 0, PLACES - 1))
        self._left -= 1
        there = self.dot == self.mark
        return self._observed(), -abs(self.dot - self.mark) / PLACES, self._left == 0, False, {"success": there}

    def _observed(self) -> np.ndarray:
        return self.render() if self._pixels else np.array([self.dot, self.mark], np.float32)

    def render(self) -> np.ndarray:
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        if not self._blank:
            picture[: SIDE // 2, 8 * self.dot : 8 * self.dot + 8] = 255
            picture[SIDE // 2 :, 8 * self.mark : 8 * self.mark + 8, 0] = 200
        return picture


class Undrawable(Dot):
    """Says that it can be drawn, and cannot: like MuJoCo where the graphics libraries are missing."""

    def render(self) -> np.ndarray:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")


class Restless(Dot):
    """Not determined by its seed: it cannot be seen again."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=None, options=options)


class Undrawn(gym.Env):
    """Has no pictures at all."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)


def point(observation: np.ndarray) -> int:
    """Knows the way: reads the state, or the picture (channels, height, width)."""
    if observation.ndim == 3:
        dot, mark = int(observation[0, 0].argmax()) // 8, int(observation[0, -1].argmax()) // 8
    else:
        dot, mark = observation
    return int(np.sign(mark - dot)) + 1


def point_all(observations: np.ndarray) -> np.ndarray:
    """The same for n observations, as a policy answers."""
    return np.array([point(observation) for observation in observations])
