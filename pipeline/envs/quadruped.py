"""The quadruped: a clock in the observation of MuJoCo's Ant, and the diagonal trot that reads it.

The observation of a gymnasium `Ant-v5` without contact forces has 27 entries: height, orientation (4), joint angles
(8: hip and ankle of legs 1 to 4), velocity of the body (6), joint velocities (8). `GaitClock` appends two.
"""

from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ANGLES: Final = slice(5, 13)  # of the observation, rad
VELOCITIES: Final = slice(19, 27)  # rad/s
OBSERVATION_SIZE: Final = 29
# forwards is +x; legs 1 to 4 are front left, back left, back right and front right
DIAGONAL: Final = np.array([1.0, -1.0, 1.0, -1.0])  # legs 1 and 3 move together, 2 and 4 half a cycle later
HIP_DIRECTIONS: Final = np.array([-1.0, -1.0, 1.0, 1.0])  # left and right hips turn against each other to go forwards
ANKLE_SIDES: Final = np.array([1.0, -1.0, -1.0, 1.0])  # signs of the ankle angles
HALF_RANGE_HIP: Final = np.radians(30.0)  # hips move from -30 to 30 degrees
HALF_RANGE_ANKLE: Final = np.radians(20.0)  # ankles from 30 to 70 degrees
MIDDLE_ANKLE: Final = np.radians(50.0)
MOTOR_LEGS: Final = np.array([3, 0, 1, 2])  # Ant's motors begin with leg 4


class GaitClock(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Appends sine and cosine of a clock to a flat observation: one turn in `period` steps, 0 at the start.

    A rhythm is then a function of the observation alone, which is what cloning needs.
    """

    def __init__(self, env: gym.Env[np.ndarray, Any], period: float) -> None:
        super().__init__(env)
        inner = env.observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise ValueError(f"GaitClock appends to a flat observation, the environment has {inner}")
        if not 2 <= period < np.inf:
            raise ValueError(f"period = {period}: a cycle needs 2 steps or more")
        self._period, self._steps = period, 0
        low, high = np.append(inner.low, [-1, -1]), np.append(inner.high, [1, 1])
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        self._steps = 0
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_clock(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        return self._with_clock(observation), reward, terminated, truncated, info

    def _with_clock(self, observation: np.ndarray) -> np.ndarray:
        phase = 2 * np.pi * self._steps / self._period
        return np.append(observation, [np.sin(phase), np.cos(phase)]).astype(np.float32)


def diagonal_trot(
    observation: np.ndarray,
    *,
    hip_amplitude: float,
    ankle_amplitude: float,
    ankle_phase: float,
    hip_offset: float,
    ankle_offset: float,
    stiffness: float,
    damping: float,
) -> np.ndarray:
    """Joint targets that follow the clock, tracked by a spring and a damper at every joint.

    (29,) observation of the Ant with its clock -> (8,) float32 torques in Ant's order, from -1 to 1. Hips swing as
    `sin(phase)`, ankles as `sin(phase + ankle_phase)`, rad. Amplitudes and offsets (from the middle) are shares of half
    a joint's range; `stiffness` is torque a rad, `damping` torque a rad/s, torque being a share of the motor's largest.
    """
    if observation.shape != (OBSERVATION_SIZE,):
        raise ValueError(
            f"the trot reads {OBSERVATION_SIZE} numbers, the Ant without contact forces and its clock; "
            f"it was given an observation of shape {observation.shape}"
        )
    seen = observation.astype(np.float64)
    sine, cosine = DIAGONAL * seen[-2], DIAGONAL * seen[-1]  # (4,), leg by leg
    shifted = sine * np.cos(ankle_phase) + cosine * np.sin(ankle_phase)
    hips = HALF_RANGE_HIP * (hip_amplitude * HIP_DIRECTIONS * sine + hip_offset)
    ankles = ANKLE_SIDES * (MIDDLE_ANKLE + HALF_RANGE_ANKLE * (ankle_amplitude * shifted + ankle_offset))
    targets = np.stack([hips, ankles], axis=1)  # (4, 2)
    torques = stiffness * (targets - seen[ANGLES].reshape(4, 2)) - damping * seen[VELOCITIES].reshape(4, 2)
    return np.clip(torques[MOTOR_LEGS].ravel(), -1, 1).astype(np.float32)
