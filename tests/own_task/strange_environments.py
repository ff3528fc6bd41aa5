"""Environments whose probe can be worked out by hand, and some that no task can be made of."""

import itertools

import gymnasium as gym
import numpy as np
from gymnasium import spaces

_MADE = itertools.count()


class Known(gym.Env):
    """Observes 100 and 104 in turn, is paid 1 a step for four steps, and says of each end what it was."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, kind: str = "sound", steps: int = 4) -> None:
        self._kind, self._steps = kind, steps
        self._chance = np.random.default_rng(next(_MADE))
        if kind == "stillborn":
            raise AssertionError("no wheels")
        if kind == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._at = 0
        return self._observe(), {}

    def _observe(self):
        noise = self._chance.normal() if self._kind == "moody" else 0.0
        return np.array([100.0 + 4.0 * (self._at % 2) + noise], np.float32)

    def step(self, action):
        self._at += 1
        if self._kind == "broken" and self._at == 2:
            raise ZeroDivisionError("a wheel came off")
        over = self._at == self._steps
        info = {"success": over, "crash": False, "distance": 2.5 * self._at, "mood": "good"} if over else {}
        if self._kind in ("silent", "sparse", "obeyed"):
            info = {}
        reward = {"sparse": 0.5 * over, "obeyed": float(np.sum(action))}.get(self._kind, 1.0)
        return self._observe(), reward, over, False, info


def odd(observation):
    """Chooses 1 whenever it sees 104: two of four steps."""
    return int(observation[0] == 104.0)


def lost(observation):
    raise KeyError("the way")


def bold(observation):
    return 2
