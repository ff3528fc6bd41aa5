"""What an episode is, and the vectorised environment that plays given episodes: the contract of all rooms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices


@dataclass(frozen=True)
class Episode:
    """One episode, fully determined by two facts."""

    scenario: str  # name of a scenario of the task
    seed: int  # 31-bit; everything random in the episode follows from it


EpisodeStream = Iterator[Episode]  # finite in evaluation and recording, infinite in training
NOTHING: Final[dict[str, Any]] = {}  # the info of all slots that did not end an episode


class EpisodeVecEnv(VecEnv):
    """A `VecEnv` whose slot i plays the episodes of `streams[i]` one after the other.

    A slot that ends an episode reports `done` and an info with

    - `episode`: `{"r": return, "l": length, "t": 0.0}` (what SB3 reads for `rollout/ep_rew_mean`),
    - `terminal_observation` and `TimeLimit.truncated` (True exactly for a truncation that is not a termination),
    - `episode_spec`: the `Episode`, and `outcome`: every scalar of the final info of the environment, as float,

    and then starts the next episode of its stream. A slot whose stream is exhausted idles: zeros, no `done`.

        env.set_streams(streams)
        observations = env.reset()
        while env.running.any():
            observations, rewards, dones, infos = env.step(act(observations))
    """

    running: np.ndarray  # (n,) bool: slots that still play

    def __init__(self, num_envs: int, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]):
        VecEnv.__init__(self, num_envs, observation_space, action_space)  # not that of a class beside this one
        self.running = np.zeros(num_envs, bool)
        self._episodes: list[Episode | None] = [None] * num_envs

    def set_streams(self, streams: Sequence[EpisodeStream]) -> None:
        """Replace the streams (as many as there are slots); they take effect at the next `reset()`."""
        if len(streams) != self.num_envs:
            raise ValueError(f"{len(streams)} streams were given for {self.num_envs} slots.")
        self._streams = list(streams)

    def _next_episode(self, i: int) -> Episode | None:
        """Slot i goes on to the next episode of its stream; None: it idles from now on."""
        self._episodes[i] = next(self._streams[i], None)
        self.running[i] = self._episodes[i] is not None
        return self._episodes[i]

    def _final_info(
        self, i: int, total: float, steps: int, observation: Any, truncated: bool, outcome: dict[str, float]
    ) -> dict[str, Any]:
        """What slot i reports of the episode that it just ended with this return."""
        return {
            "episode": {"r": total, "l": steps, "t": 0.0},
            "terminal_observation": observation,
            "TimeLimit.truncated": truncated,
            "episode_spec": self._episodes[i],
            "outcome": outcome,
        }


class RemoteVecEnv(EpisodeVecEnv):
    """One whose slots are no objects here: rows of arrays, or environments of other processes."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = None if attr_name == "render_mode" else getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError("These environments are no objects here; they have no attributes to set.")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **named: Any) -> list[Any]:
        raise NotImplementedError("These environments are no objects here; they have no methods to call.")

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
