"""Environments of every kind of space that is taken, each solved by reading its observation."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

KINDS = {
    "dict": spaces.Dict(
        {
            "where": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "mode": spaces.Discrete(3),
            "on": spaces.MultiBinary(2),
        }
    ),
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(2),
    "bounded": spaces.Box(-2.0, 2.0, (2,), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
}


class Odd(gym.Env):
    """Observes a number, hidden in its kind of space; the right action repeats it. Six steps an episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, observes: str = "dict", acts: str = "discrete", render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = KINDS[observes], ACTIONS[acts]
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = self._right = 0
        return self._observe(), {"is_success": False}

    def _observe(self):
        # drawn one by one, so that episodes of few discrete values differ by their rewards and seeds
        self._number = int(self.np_random.integers(3))
        self._noise = float(self.np_random.normal())
        kind, n = self.observation_space, self._number
        if isinstance(kind, spaces.Dict):
            on = np.array([n > 0, n > 1], np.int8)
            return {"where": np.array([n, self._noise]), "mode": np.int64(n), "on": on}
        if isinstance(kind, spaces.Box):
            return np.array([n - 1, 0.5, np.clip(self._noise, -1, 1)], np.float32)
        if isinstance(kind, spaces.MultiDiscrete):
            return np.array([n, self._steps % 4])
        return np.int64(n) if isinstance(kind, spaces.Discrete) else np.array([n > 0, n > 1, n > 2], np.int8)

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype)), action
        right = np.array_equal(np.round(np.asarray(action, np.float64)), _answer(self.action_space, self._number))
        self._right += right
        self._steps += 1
        reward = float(right) + 0.01 * self._noise
        over = self._steps == 6
        return self._observe(), reward, over, False, {"is_success": over and self._right >= 5}

    def render(self):
        return np.full((32, 32, 3), 40 * self._steps, np.uint8)


def _answer(space: spaces.Space, number: int) -> np.ndarray:
    if isinstance(space, spaces.Discrete):
        return np.array(number)
    if isinstance(space, spaces.MultiDiscrete):
        return np.array([number, number % 2])
    if isinstance(space, spaces.MultiBinary):
        return np.array([number > 0, number > 1], np.int8)
    return np.array([number - 1.0, 1.0 - number])


class Reader:
    """The scripted demonstrator: reads the number out of an observation and repeats it."""

    def __init__(self, acts: str = "discrete") -> None:
        self._space = ACTIONS[acts]

    def reset(self):
        """Nothing to forget."""

    def act(self, observation):
        return _answer(self._space, self._number(observation)).astype(self._space.dtype)

    @staticmethod
    def _number(observation):
        if isinstance(observation, dict):
            return int(observation["mode"])
        if observation.dtype == np.float32:
            return round(float(observation[0])) + 1
        return (
            int(observation)
            if observation.shape == ()
            else int(observation[0] if len(observation) == 2 else observation.sum())
        )
