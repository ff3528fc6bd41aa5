"""Pendulums for the tests: one says how far it hangs over, one takes large numbers, one shows what is no number."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv


class Angles(PendulumEnv):
    """Info `angle`: the distance from upright in radians."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "angle": abs(math.atan2(*observation[1::-1]))}


class Wide(PendulumEnv):
    """Its torque goes from -256 to 256."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-256, 256, (1,), np.float32)

    def step(self, action: Any) -> Any:
        return super().step(action / 128)


class Seen(PendulumEnv):
    """Shows a picture: a grey of its angle."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def _get_obs(self) -> np.ndarray:
        return np.full((36, 36, 3), 127 + 127 * math.sin(self.state[0]), np.uint8)


class Failing(PendulumEnv):
    """From its 50th step on, over all its episodes, what is `broken` is NaN."""

    def __init__(self, broken: str) -> None:
        super().__init__()
        self._broken, self._steps = broken, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self._steps += 1
        if self._steps >= 50 and self._broken == "an observation":
            observation = np.full_like(observation, np.nan)
        if self._steps >= 50 and self._broken == "a reward":
            reward = math.nan
        return observation, reward, terminated, truncated, info
