"""The batched face of the simulation: all slots advance in one compiled call."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from pipeline.envs.episodes import NOTHING, EpisodeStream, RemoteVecEnv
from pipeline.envs.social_nav.environment import make_settings, scenario_numbers
from pipeline.envs.social_nav.kernels import advance, start
from pipeline.envs.social_nav.layout import SLOT
from pipeline.envs.social_nav.metrics import episode_metrics
from pipeline.envs.social_nav.observation import OBSERVATION_SIZE
from pipeline.errors import BadInput


class SocialNavVecEnv(RemoteVecEnv):
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
        super().__init__(len(streams), *(Box(-1.0, 1.0, (n,), np.float32) for n in (OBSERVATION_SIZE, 2)))
        self.set_streams(streams)
        self._numbers = {name: scenario_numbers(**kwargs) for name, kwargs in scenarios.items()}
        self._settings = make_settings(**environment_kwargs)
        self._horizon = int(self._settings["horizon"][0])
        self._slots = np.zeros(self.num_envs, SLOT)
        self._observations = np.zeros((self.num_envs, OBSERVATION_SIZE), np.float32)
        self._rewards = np.zeros(self.num_envs, np.float32)
        self._done = np.zeros(self.num_envs, np.int8)
        self._no_infos = [NOTHING] * self.num_envs

    def _begin(self, i: int) -> None:
        """Start the next episode of stream i, or let the slot idle when there is none."""
        episode = self._next_episode(i)
        if episode is None:
            self._slots[i]["running"] = 0
            self._observations[i] = 0.0
            self._rewards[i] = 0.0
            return
        if episode.scenario not in self._numbers:
            known = ", ".join(self._numbers)
            raise BadInput(f"The episode's scenario is {episode.scenario!r}; this environment was made for {known}.")
        start(self._slots, i, *self._numbers[episode.scenario], episode.seed, self._settings, self._observations)

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
            slot, observation, truncated = self._slots[i], self._observations[i].copy(), bool(self._done[i] == 2)
            total, steps, outcome = float(slot["reward_sum"]), int(slot["steps"]), episode_metrics(slot, self._horizon)
            infos[i] = self._final_info(i, total, steps, observation, truncated, outcome)
            self._done[i] = 0
            self._begin(i)
        return self._observations.copy(), rewards, done, infos

    def close(self) -> None:
        """Nothing to release."""

    def states(self) -> np.ndarray:
        """A copy of the full simulation state of every slot, (n,) SLOT."""
        return self._slots.copy()
