"""An environment whose success and collision rates follow from its keyword arguments, whatever the policy does."""

import errno
import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces

STEPS = 4


class Fated(gym.Env):
    """Episodes of four steps; a share `skill` of them succeeds, a share `reckless` collides, by their seed.

    While the file `fault` says so, the disk is `full`, or the process is killed (`kill`).
    """

    def __init__(
        self, skill: float = 0.5, reckless: float = 0.0, breaks: bool = False, slow: float = 0.0, fault: str = ""
    ) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._skill, self._reckless, self._breaks, self._slow = skill, reckless, breaks, slow
        self._fault = Path(fault or os.devnull)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self._fate, self._step = self.np_random.random(2), 0
        return self._observation(), {}

    def step(self, action):
        if self._breaks:
            raise ArithmeticError("the wheels came off")
        fault = self._fault.read_text() if self._fault.exists() else ""
        if fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if pause := self._slow + float(os.environ.get("FATED_SLOW", "0")):
            time.sleep(pause)  # subtle: a pause of 0 would let everybody else on a busy machine go first
        self._step += 1
        done = self._step == STEPS
        info = {"success": self._fate[0] < self._skill, "collision": self._fate[1] < self._reckless} if done else {}
        return self._observation(), 1.0, done, False, info

    def _observation(self) -> np.ndarray:
        return np.array([self._step / STEPS, 0.0], np.float32)
