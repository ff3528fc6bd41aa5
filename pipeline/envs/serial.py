"""Any Gymnasium environment behind the episode contract: slots are played one after the other in this process."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from pipeline.envs.episodes import Episode, EpisodeStream, EpisodeVecEnv

_NOTHING: dict[str, Any] = {}  # shared by all slots that did not end an episode


def outcome_of(info: dict[str, Any]) -> dict[str, float]:
    """Every number of a final info as float: `{"success": array([True]), "name": "a", 7: 1}` -> `{"success": 1.0}`.

    An array of one is a number, a tensor's too. Left out are keys that no task file can name, as they are no text, and
    what no float holds.
    """
    numbers = {}
    for key, value in info.items():
        with suppress(OverflowError, TypeError):  # a whole number beyond every float; a tensor on another device
            array = np.asarray(value) if hasattr(value, "__array__") else None
            number = array.item() if array is not None and array.size == 1 else value
            if isinstance(key, str) and isinstance(number, bool | int | float | np.floating):
                numbers[key] = float(number)
    return numbers


class SerialVecEnv(EpisodeVecEnv):
    """A Gymnasium environment a slot, made by `make_env(scenario)` when no slot has left one of the scenario behind.

        env = SerialVecEnv(lambda scenario: gymnasium.make("CartPole-v1"), [iter([Episode("default", 7)])])

    The spaces are those of the first episode's environment; all scenarios must share them. Raises ValueError when no
    stream holds an episode (there would be nothing to take the spaces from).
    """

    def __init__(self, make_env: Callable[[str], gymnasium.Env[Any, Any]], streams: Sequence[EpisodeStream]) -> None:
        self._make_env = make_env
        self._streams = [iter(stream) for stream in streams]
        self._made: list[gymnasium.Env[Any, Any]] = []
        self._free: dict[str, list[gymnasium.Env[Any, Any]]] = {}  # scenario -> those that no slot plays in
        self._current: list[gymnasium.Env[Any, Any]] = [self._probe()] * len(self._streams)
        first = self._current[0]
        super().__init__(len(self._streams), first.observation_space, first.action_space)
        self._keys, shapes, dtypes = obs_space_info(first.observation_space)
        self._buffers = OrderedDict((key, np.zeros((self.num_envs, *shapes[key]), dtypes[key])) for key in self._keys)
        self._episodes: list[Episode | None] = [None] * self.num_envs
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self.running = np.zeros(self.num_envs, bool)

    def _probe(self) -> gymnasium.Env[Any, Any]:
        for i, stream in enumerate(self._streams):
            episode = next(stream, None)
            if episode is not None:
                self._streams[i] = chain([episode], stream)
                first = self._take(episode.scenario)
                self._free[episode.scenario] = [first]
                return first
        raise ValueError("None of the streams holds an episode.")

    def _take(self, scenario: str) -> gymnasium.Env[Any, Any]:
        if self._free.get(scenario):
            return self._free[scenario].pop()
        self._made.append(self._make_env(scenario))
        return self._made[-1]

    def set_streams(self, streams: Sequence[EpisodeStream]) -> None:
        if len(streams) != self.num_envs:
            raise ValueError(f"{len(streams)} streams were given for {self.num_envs} slots.")
        self._streams = [iter(stream) for stream in streams]

    def _begin(self, i: int) -> None:
        """Start the next episode of stream i, or let the slot idle when there is none."""
        before, episode = self._episodes[i], next(self._streams[i], None)
        if before is not None:
            self._free.setdefault(before.scenario, []).append(self._current[i])
        self._episodes[i] = episode
        self.running[i] = episode is not None
        self._returns[i], self._lengths[i] = 0.0, 0
        if episode is None:
            for buffer in self._buffers.values():
                buffer[i] = 0
            return
        self._current[i] = self._take(episode.scenario)
        observation, _ = self._current[i].reset(seed=episode.seed)
        self._store(i, observation)

    def _store(self, i: int, observation: Any) -> None:
        for key in self._keys:
            self._buffers[key][i] = observation if key is None else observation[key]

    def _observations(self) -> VecEnvObs:
        return dict_to_obs(
            self.observation_space, OrderedDict((key, rows.copy()) for key, rows in self._buffers.items())
        )

    def reset(self) -> VecEnvObs:
        for i in range(self.num_envs):
            self._begin(i)
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos = [_NOTHING] * self.num_envs
        for i in np.flatnonzero(self.running).tolist():
            observation, reward, terminated, truncated, info = self._current[i].step(self._actions[i])
            rewards[i] = reward
            self._returns[i] += float(reward)
            self._lengths[i] += 1
            if terminated or truncated:
                dones[i] = True
                infos[i] = self._final_info(i, observation, truncated and not terminated, info)
                self._begin(i)
            else:
                self._store(i, observation)
        return self._observations(), rewards, dones, infos

    def _final_info(self, i: int, observation: Any, truncated: bool, info: dict[str, Any]) -> dict[str, Any]:
        return {
            "episode": {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": 0.0},
            "terminal_observation": observation,
            "TimeLimit.truncated": bool(truncated),
            "episode_spec": self._episodes[i],
            "outcome": outcome_of(info),
        }

    def close(self) -> None:
        while self._made:
            self._made.pop().close()
        self._free.clear()
        self._episodes = [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [self._current[i].get_wrapper_attr(attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        for i in self._get_indices(indices):
            setattr(self._current[i].unwrapped, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        methods = [self._current[i].get_wrapper_attr(method_name) for i in self._get_indices(indices)]
        return [method(*method_args, **method_kwargs) for method in methods]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        from stable_baselines3.common.env_util import is_wrapped

        return [is_wrapped(self._current[i], wrapper_class) for i in self._get_indices(indices)]
