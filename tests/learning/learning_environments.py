"""Pendulums for the tests of learning: one says how far it hangs over, one gives a reward that is no number."""

import math
from typing import Any

from gymnasium.envs.classic_control import PendulumEnv


class Angles(PendulumEnv):
    """Info `angle`: the distance from upright in radians."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "angle": abs(math.atan2(*observation[1::-1]))}


class Unrewarding(PendulumEnv):
    """Its reward is NaN in training only: evaluations, which refuse such a reward by themselves, see none."""

    broken = False

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, math.nan if self.broken else reward, terminated, truncated, info
