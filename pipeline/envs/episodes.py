"""What an episode is, and the vectorised environment that plays given episodes: the contract of all rooms."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from stable_baselines3.common.vec_env import VecEnv


@dataclass(frozen=True)
class Episode:
    """One episode, fully determined by two facts."""

    scenario: str  # name of a scenario of the task
    seed: int  # 31-bit; everything random in the episode follows from it


EpisodeStream = Iterator[Episode]  # finite in evaluation and recording, infinite in training


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

    @abstractmethod
    def set_streams(self, streams: Sequence[EpisodeStream]) -> None:
        """Replace the streams (as many as there are slots); they take effect at the next `reset()`."""
