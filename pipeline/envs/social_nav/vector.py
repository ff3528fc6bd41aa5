"""The batched face of the simulation: all slots advance in one compiled call."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from pipeline.envs.episodes import Episode, EpisodeStream, EpisodeVecEnv
from pipeline.envs.social_nav.environment import action_space, make_settings, observation_space, scenario_numbers
from pipeline.envs.social_nav.kernels import advance, start
from pipeline.envs.social_nav.layout import SLOT
from pipeline.envs.social_nav.metrics import episode_metrics
from pipeline.envs.social_nav.observation import OBSERVATION_SIZE
from pipeline.errors import BadInput

_NOTHING: dict[str, Any] = {}  # shared by all slots that did not end an episode


class SocialNavVecEnv(EpisodeVecEnv):
    """`scenarios` maps each scenario name to its keyword arguments (`scenario`, `density`, `pedestrians`).

        env = SocialNavVecEnv({"frontal_low": {"scenario": "frontal_approach", "density": "low"}}, streams)

    Further keyword arguments are those of `SocialNavEnv` that all scenarios share (`reward_name`, `reward_kwargs`,
    `max_speed`, `horizon`). Raises BadInput on wrong arguments.
    """

    def __init__(
        self,
        scenarios: Mapping[str, Mapping[str, Any]],
        streams: Sequence[EpisodeStream],
        **environment_kwargs: Any,
    ) -> None:
        super().__init__(len(streams), observation_space(), action_space())
        self._numbers = {name: scenario_numbers(**kwargs) for name, kwargs in scenarios.items()}
        self._settings = make_settings(**environment_kwargs)
        self._horizon = int(self._settings["horizon"][0])
        self._streams: list[Iterator[Episode]] = list(streams)
        self._episodes: list[Episode | None] = [None] * self.num_envs
        self._slots = np.zeros(self.num_envs, SLOT)
        self._observations = np.zeros((self.num_envs, OBSERVATION_SIZE), np.float32)
        self._rewards = np.zeros(self.num_envs, np.float32)
        self._done = np.zeros(self.num_envs, np.int8)
        self._actions = np.zeros((self.num_envs, 2), np.float32)
        self._no_infos = [_NOTHING] * self.num_envs
        self.running = np.zeros(self.num_envs, bool)

    def set_streams(self, streams: Sequence[EpisodeStream]) -> None:
        if len(streams) != self.num_envs:
            raise ValueError(f"{len(streams)} streams were given for {self.num_envs} slots")
        self._streams = list(streams)

    def _begin(self, i: int) -> None:
        """Start the next episode of stream i, or let the slot idle when there is none."""
        episode = next(self._streams[i], None)
        self._episodes[i] = episode
        self.running[i] = episode is not None
        if episode is None:
            self._slots[i]["running"] = 0
            self._observations[i] = 0.0
            self._rewards[i] = 0.0
            return
        if episode.scenario not in self._numbers:
            known = ", ".join(self._numbers)
            raise BadInput(f"The episode's scenario is {episode.scenario!r}; this environment was made for {known}.")
        family, pedestrians = self._numbers[episode.scenario]
        start(self._slots, i, family, pedestrians, episode.seed, self._settings, self._observations)

    def reset(self) -> VecEnvObs:
        for i in range(self.num_envs):
            self._begin(i)
        self._rewards[:] = 0.0
        self._reset_seeds()
        self._reset_options()
        return self._observations.copy()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = np.ascontiguousarray(actions, np.float32)
        if self._actions.shape != (self.num_envs, 2):
            raise ValueError(f"actions have shape {self._actions.shape}, expected {(self.num_envs, 2)}")
        if not np.isfinite(self._actions).all():
            raise BadInput("An action is not finite; the policy that chose it is broken (diverged training?).")

    def step_wait(self) -> VecEnvStepReturn:
        ended = advance(self._slots, self._actions, self._settings, self._observations, self._rewards, self._done)
        # subtle: callers keep what they get (SB3 stores the last observation after the next step), so copies leave.
        rewards = self._rewards.copy()
        if not ended:
            return self._observations.copy(), rewards, np.zeros(self.num_envs, bool), self._no_infos
        done = self._done > 0
        infos = list(self._no_infos)
        for i in np.flatnonzero(done).tolist():
            infos[i] = self._final_info(i)
            self._done[i] = 0
            self._begin(i)
        return self._observations.copy(), rewards, done, infos

    def _final_info(self, i: int) -> dict[str, Any]:
        slot = self._slots[i]
        return {
            "episode": {"r": float(slot["reward_sum"]), "l": int(slot["steps"]), "t": 0.0},
            "terminal_observation": self._observations[i].copy(),
            "TimeLimit.truncated": bool(self._done[i] == 2),
            "episode_spec": self._episodes[i],
            "outcome": episode_metrics(slot, self._horizon),
        }

    def close(self) -> None:
        """Nothing to release."""

    def states(self) -> np.ndarray:
        """A copy of the full simulation state of every slot, (n,) SLOT."""
        return self._slots.copy()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = None if attr_name == "render_mode" else getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError("The slots of this environment are rows of arrays; they have no attributes to set.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise NotImplementedError("The slots of this environment are rows of arrays; they have no methods to call.")

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
