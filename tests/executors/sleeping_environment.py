"""CartPole whose steps take a while, on any machine."""

import time

from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class SleepingCartPole(CartPoleEnv):
    def __init__(self, seconds: float = 0.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self._seconds = seconds

    def step(self, action):
        time.sleep(self._seconds)
        return super().step(action)
