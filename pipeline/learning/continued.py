"""What SB3's algorithms need to stop at a boundary between rollouts, and to go on from there in another process."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from pipeline.policies.artifact import Policy


class Continued(BaseAlgorithm):
    """Stands in front of an algorithm of SB3: `class WarmPPO(Continued, PPO)`.

    Time, steps and what is logged count from the beginning of a training, whatever parts it was trained in.
    """

    seconds_before: float = 0.0  # that the training took before this `learn`
    optimizer_steps: int = 0  # of the optimisers that are counted

    def acting_policy(self) -> Policy:
        """What is evaluated and kept: the policy as it is now."""
        raise NotImplementedError

    def reward_unit(self) -> float | None:
        """By what rewards are divided now, in whose unit the critic's values are; None: they are as they are."""
        return None

    def on_evaluation(self, returns: np.ndarray) -> None:
        """Take in a scheduled evaluation, (E,) returns of the same episodes every time."""

    def count(self, optimizer: torch.optim.Optimizer) -> None:
        """Count its steps from now on."""

        def one_more(*_: Any) -> None:
            self.optimizer_steps += 1

        optimizer.register_step_post_hook(one_more)

    def progress(self) -> dict[str, Any]:
        """For a checkpoint: what every algorithm counts and has not logged yet."""
        return {
            "num_timesteps": self.num_timesteps,
            "n_updates": self._n_updates,
            "optimizer_steps": self.optimizer_steps,
            "episode_infos": list(self.ep_info_buffer or ()),
            "episode_successes": list(self.ep_success_buffer or ()),
            "unlogged": {
                name: [value, list(self.logger.name_to_excluded[name] or ())]
                for name, value in self.logger.name_to_value.items()
            },
        }

    def restore_progress(self, state: Mapping[str, Any]) -> None:
        """Be where a checkpoint was taken. The logger must be set."""
        self.num_timesteps, self._n_updates = state["num_timesteps"], state["n_updates"]
        self.optimizer_steps = state["optimizer_steps"]
        self.ep_info_buffer = deque(state["episode_infos"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(state["episode_successes"], maxlen=self._stats_window_size)
        for name, (value, excluded) in state["unlogged"].items():
            self.logger.record(name, value, tuple(excluded))

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        """SB3 counts time and speed from here; a training that is continued counts them from its beginning."""
        outcome = super()._setup_learn(*args, **kwargs)
        self.start_time -= int(self.seconds_before * 1e9)
        self._num_timesteps_at_start = 0
        return outcome


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Fill an optimiser with what a checkpoint holds of one."""
    moments = {int(index): values for index, values in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
