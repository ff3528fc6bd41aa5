"""Any Gymnasium environment behind the episode contract: slots are played one after the other in this process."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import obs_space_info

from pipeline.envs.episodes import NOTHING, EpisodeStream, EpisodeVecEnv


def outcome_of(info: dict[str, Any]) -> dict[str, float]:
    """Every number of a final info as float: `{"success": array([True]), "name": "a", 7: 1}` -> `{"success": 1.0}`.

    An array of one is a number, a tensor's too. Left out are keys that no task file can name, as they are no text, and
    what no float holds.
    """
    numbers = {}
    for key, value in info.items():
        with suppress(Exception):  # a whole number beyond every float, a tensor on another device or with a gradient
            array = np.asarray(value) if hasattr(value, "__array__") else None
            number = array.item() if array is not None and array.size == 1 else value
            if isinstance(key, str) and isinstance(number, bool | int | float | np.floating):
                numbers[key] = float(number)
    return numbers


class SerialVecEnv(EpisodeVecEnv, DummyVecEnv):
    """A Gymnasium environment a slot, made by `make_env(scenario)` when no slot has left one of the scenario behind.

        env = SerialVecEnv(lambda scenario: gymnasium.make("CartPole-v1"), [iter([Episode("default", 7)])])

    The spaces are those of the first episode's environment; all scenarios must share them. Raises ValueError when no
    stream holds an episode (there would be nothing to take the spaces from). Observations and attributes are kept as
    SB3's own `DummyVecEnv` keeps them.
    """

    def __init__(self, make_env: Callable[[str], gymnasium.Env[Any, Any]], streams: Sequence[EpisodeStream]) -> None:
        self._make_env = make_env
        self._made: list[gymnasium.Env[Any, Any]] = []
        self._free: dict[str, list[gymnasium.Env[Any, Any]]] = {}  # scenario -> those that no slot plays in
        streams = list(streams)
        for i, stream in enumerate(streams):
            if (episode := next(stream, None)) is not None:
                streams[i] = chain([episode], stream)
                first = self._take(episode.scenario)
                self._free[episode.scenario] = [first]
                break
        else:
            raise ValueError("None of the streams holds an episode.")
        self.envs = [first] * len(streams)  # what each slot plays in, or played in last
        super().__init__(len(streams), first.observation_space, first.action_space)
        self.set_streams(streams)
        self.keys, shapes, dtypes = obs_space_info(first.observation_space)
        self.buf_obs = OrderedDict((key, np.zeros((self.num_envs, *shapes[key]), dtypes[key])) for key in self.keys)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)

    def _take(self, scenario: str) -> gymnasium.Env[Any, Any]:
        if self._free.get(scenario):
            return self._free[scenario].pop()
        self._made.append(self._make_env(scenario))
        return self._made[-1]

    def _begin(self, i: int) -> None:
        """Start the next episode of stream i, or let the slot idle when there is none."""
        before, episode = self._episodes[i], self._next_episode(i)
        if before is not None:
            self._free.setdefault(before.scenario, []).append(self.envs[i])
        self._returns[i], self._lengths[i] = 0.0, 0
        if episode is None:
            for buffer in self.buf_obs.values():
                buffer[i] = 0
            return
        self.envs[i] = self._take(episode.scenario)
        observation, _ = self.envs[i].reset(seed=episode.seed)
        self._save_obs(i, observation)

    def reset(self) -> VecEnvObs:
        for i in range(self.num_envs):
            self._begin(i)
        self._reset_seeds()
        self._reset_options()
        return self._obs_from_buf()

    def step_wait(self) -> VecEnvStepReturn:
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos = [NOTHING] * self.num_envs
        for i in np.flatnonzero(self.running).tolist():
            observation, reward, terminated, truncated, info = self.envs[i].step(self.actions[i])
            rewards[i] = reward
            self._returns[i] += float(reward)
            self._lengths[i] += 1
            if terminated or truncated:
                dones[i], cut = True, bool(truncated and not terminated)
                total, steps = float(self._returns[i]), int(self._lengths[i])
                infos[i] = self._final_info(i, total, steps, observation, cut, outcome_of(info))
                self._begin(i)
            else:
                self._save_obs(i, observation)
        return self._obs_from_buf(), rewards, dones, infos

    def close(self) -> None:
        while self._made:
            self._made.pop().close()
        self._free.clear()
        self._episodes = [None] * self.num_envs
