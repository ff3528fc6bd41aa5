"""An environment whose every figure can be worked out by hand."""

import gymnasium as gym
import numpy as np

from pipeline.envs.serial import SerialVecEnv


class Counting(gym.Env):
    """Step t (1, 2, ...) observes t, is rewarded with t, and ends at `ends_at`; the seed only shows in the info."""

    def __init__(self, ends_at: int = 4, ill: str = "", bonus: float = 0.0) -> None:
        self.observation_space = gym.spaces.Box(0.0, 100.0, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._ends_at, self._ill, self._bonus = ends_at, ill, bonus

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._t += 1
        done = self._t >= self._ends_at
        info = {
            "t": self._t,
            "alternating": -1.0 if self._t % 2 else 2.0,
            "reached": done and int(action) == 1,
            "crashed": done and int(action) == 0,
            "label": "a text",
        }
        if self._t == 2:
            info["rare"] = 7.0
        if self._ill == "missing":
            del info["reached"]
        if self._ill == "nan":
            info["crashed"] = float("nan")
            info["alternating"] = float("nan") if self._t == 2 else 1.0
        return np.array([self._t], np.float32), self._t + self._bonus, done, False, info


class TakesAnything(Counting):
    def __init__(self, **taken) -> None:
        super().__init__()
        self.taken = taken


class Bounded(Counting):
    def __init__(self, high: int) -> None:
        super().__init__()
        self.high = np.int32(high)


class BoundedWrapper(gym.Wrapper):
    def __init__(self, env, high: int) -> None:
        super().__init__(env)
        self.high = np.int32(high)


class Scaled(gym.ObservationWrapper):
    """`clip((observation - mean) / std, -clip, clip)`."""

    def __init__(self, env, mean, std, clip):
        super().__init__(env)
        self.mean, self.std, self.clip = mean, std, clip
        self.observation_space = gym.spaces.Box(-clip, clip, env.observation_space.shape, np.float32)

    def observation(self, observation):
        return np.clip((observation - self.mean) / self.std, -self.clip, self.clip).astype(np.float32)


class UnpluggedWrapper(gym.Wrapper):
    closed = 0  # environments below that were closed

    def __init__(self, env) -> None:
        cls = type(self)

        def close() -> None:
            cls.closed += 1

        env.unwrapped.close = close
        raise NotImplementedError


class UnpluggedBatch(SerialVecEnv):
    def __init__(self, scenarios, streams) -> None:
        raise OSError("no such port")


class NoEnvironment:
    """A class that can be made and is no environment."""

    def __init__(self, *arguments, **keywords) -> None:
        pass


class NeedsArguments(SerialVecEnv):
    """A batched environment that cannot be made without an argument that no task file gave."""

    def __init__(self, scenarios, streams, *, size) -> None:
        pass
