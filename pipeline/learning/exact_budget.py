"""PPO that ends at exactly its budget: trials of different rollout lengths get the same number of environment steps."""

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from pipeline.learning.warm_start import WarmPPO


class ExactPPO(WarmPPO):
    """SB3 rounds the budget up to whole rollouts; here the last rollout is as long as what remains of the budget.

    The budget must be a multiple of `n_envs`. When it is one of a whole rollout, every update is SB3's own.
    """

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        remaining = (self._total_timesteps - self.num_timesteps) // self.n_envs
        if remaining < n_rollout_steps:
            # subtle: `train` reads self.rollout_buffer, and takes its size from it
            self.rollout_buffer = rollout_buffer = type(rollout_buffer)(
                remaining,
                self.observation_space,
                self.action_space,
                device=self.device,
                gamma=self.gamma,
                gae_lambda=self.gae_lambda,
                n_envs=self.n_envs,
            )
            n_rollout_steps = remaining
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
