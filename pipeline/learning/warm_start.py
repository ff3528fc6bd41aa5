"""Starting PPO from a clone: critic burn-in, and a penalty that fades out.

Everything here is explicit and off in a training from scratch. How the clone was made is not known here.
"""

import copy
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance
from torch.nn import functional

from pipeline.config.training import WarmStart
from pipeline.errors import BadInput
from pipeline.learning.divergence import Diverged, not_finite


class WarmPPO(PPO):
    """SB3's PPO with a critic burn-in and a fading penalty KL(clone || policy); `begin_warm_start` arms them.

    Without burn-in and penalty every update is SB3's own, bit for bit.
    """

    warm_start: WarmStart | None = None
    critic_optimizer: torch.optim.Optimizer | None = None  # of the burn-in; None when there is none, or no more
    seconds_before: float = 0.0  # that the training took before this `learn`
    _reference: ActorCriticPolicy | None = None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        """SB3 counts time and speed from here; a training that is continued counts them from its beginning."""
        outcome = super()._setup_learn(*args, **kwargs)
        self.start_time -= int(self.seconds_before * 1e9)
        self._num_timesteps_at_start = 0
        return outcome

    def dump_logs(self, iteration: int = 0) -> None:
        """Log the rollout, counted from the beginning of the training."""
        super().dump_logs(-(-self.num_timesteps // (self.n_steps * self.n_envs)))

    def new_statistics(self, entries: Iterable[Any] = ()) -> deque[Any]:
        """What SB3 keeps of the last episodes."""
        return deque(entries, maxlen=self._stats_window_size)

    def begin_warm_start(self, settings: WarmStart) -> None:
        """Take the present policy as the clone to stay near to. Call once, before `learn`."""
        self.warm_start = settings
        if settings.clone_penalty > 0:
            self._reference = copy.deepcopy(self.policy)
            for parameter in self._reference.parameters():
                parameter.requires_grad_(False)
        if settings.critic_burn_in_steps > 0:
            parts = self.policy.vf_features_extractor, self.policy.mlp_extractor.value_net, self.policy.value_net
            critic = [parameter for part in parts for parameter in part.parameters()]
            self.critic_optimizer = torch.optim.Adam(critic, lr=settings.critic_burn_in_learning_rate)

    def penalty_weight(self) -> float:
        """Weight of the penalty now: linear from `clone_penalty` to 0 over `clone_penalty_fade_steps` after burn-in."""
        if self.warm_start is None or self._reference is None:
            return 0.0
        elapsed = max(0, self.num_timesteps - self.n_steps * self.n_envs - self.warm_start.critic_burn_in_steps)
        fade = self.warm_start.clone_penalty_fade_steps
        return self.warm_start.clone_penalty * (max(0.0, 1 - elapsed / fade) if fade else 1.0)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Play one rollout. Raises BadInput for an environment that shows what is no number."""
        try:
            return super().collect_rollouts(*args, **kwargs)
        except ValueError:  # torch's, of a distribution
            self._refuse_what_is_not_finite()
            raise

    def train(self) -> None:
        """One update on the rollout buffer, after which the policy still computes with numbers. Raises Diverged."""
        try:
            self._update()
        except ValueError:  # torch's, of a distribution, in the middle of the update
            self._refuse_what_is_not_finite()
            raise
        self._refuse_what_is_not_finite()

    def _refuse_what_is_not_finite(self) -> None:
        assert self._last_obs is not None
        seen = self._last_obs.values() if isinstance(self._last_obs, dict) else [self._last_obs]
        for what, arrays in (("an observation", seen), ("a reward", [self.rollout_buffer.rewards])):
            if not all(np.isfinite(array).all() for array in arrays):
                raise BadInput(f"until step {self.num_timesteps:,} {what} was not finite; look at the environment")
        weights = not_finite(self.policy)
        if weights is None and self._acts():
            return
        rate, setting = self._now(self.lr_schedule), "training.learning_rate"
        if self.critic_optimizer is not None:
            rate, setting = self.critic_optimizer.param_groups[0]["lr"], "warm_start.critic_burn_in_learning_rate"
        raise Diverged(
            f"diverged at step {self.num_timesteps:,}: {weights or 'what it gives'} is not finite; lower "
            f"{setting} (now {rate:g}), or divide large rewards by their spread (training.normalize_reward)"
        )

    @torch.no_grad()
    def _acts(self) -> bool:
        """Does the policy give numbers: finite weights may still be too large to compute with."""
        assert self._last_obs is not None
        observations = self.policy.obs_to_tensor(self._last_obs)[0]
        try:
            distribution = self.policy.get_distribution(observations)
        except ValueError:
            return False
        given = distribution.mode(), distribution.entropy(), self.policy.predict_values(observations)
        return all(bool(torch.isfinite(tensor).all()) for tensor in given if tensor is not None)

    def _update(self) -> None:
        """The critic alone in burn-in, then PPO with the penalty, then plain PPO."""
        if self.critic_optimizer is not None and self.warm_start is not None:
            if self.num_timesteps <= self.warm_start.critic_burn_in_steps:
                self._train_critic(self.critic_optimizer)
                return
            self.critic_optimizer = None
        weight = self.penalty_weight()
        if weight > 0:
            self._train_near_clone(weight)
        else:
            self._reference = None
            super().train()

    def _train_critic(self, optimizer: torch.optim.Optimizer) -> None:
        losses: list[float] = []
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                loss = functional.mse_loss(self.policy.predict_values(batch.observations).flatten(), batch.returns)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        buffer = self.rollout_buffer
        self.logger.record("train/value_loss", float(np.mean(losses)))
        self.logger.record(
            "train/explained_variance", explained_variance(buffer.values.ravel(), buffer.returns.ravel())
        )
        self.logger.record("train/critic_burn_in", 1.0)

    def _train_near_clone(self, weight: float) -> None:
        """SB3's PPO update (Schulman et al. 2017) with `weight * KL(clone || policy)` added to the loss."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self._now(self.clip_range)
        logged: dict[str, list[float]] = {}
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                loss, parts = self._penalised_loss(batch, clip_range, weight)
                for name, value in parts.items():
                    logged.setdefault(name, []).append(value)
                if self.target_kl is not None and parts["approx_kl"] > 1.5 * self.target_kl:
                    break
                self.policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            else:
                self._n_updates += 1
                continue
            self._n_updates += 1
            break
        self._record_update(logged, clip_range, weight)

    def _penalised_loss(self, batch: Any, clip_range: float, weight: float) -> tuple[torch.Tensor, dict[str, float]]:
        discrete = isinstance(self.action_space, spaces.Discrete)
        actions = batch.actions.long().flatten() if discrete else batch.actions
        policy = self.policy
        distribution = policy.get_distribution(batch.observations)
        values, log_prob = policy.predict_values(batch.observations).flatten(), distribution.log_prob(actions)
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_prob - batch.old_log_prob
        ratio = log_ratio.exp()
        clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        if self.clip_range_vf is not None:
            limit = self._now(self.clip_range_vf)
            values = batch.old_values + torch.clamp(values - batch.old_values, -limit, limit)
        value_loss = functional.mse_loss(batch.returns, values)
        entropy = distribution.entropy()
        entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
        assert self._reference is not None
        with torch.no_grad():
            clone = _plain(self._reference.get_distribution(batch.observations))
            approx_kl = ((ratio - 1) - log_ratio).mean()
        pairs = zip(clone, _plain(distribution), strict=True)
        parts = [torch.distributions.kl_divergence(before, now) for before, now in pairs]
        divergence = torch.stack([d.sum(dim=1) if d.ndim > 1 else d for d in parts]).sum(dim=0).mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss + weight * divergence
        return loss, {
            "policy_gradient_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "entropy_loss": entropy_loss.item(),
            "clip_fraction": ((ratio - 1).abs() > clip_range).float().mean().item(),
            "approx_kl": approx_kl.item(),
            "clone_divergence": divergence.item(),
            "loss": loss.item(),
        }

    def _now(self, schedule: Any) -> float:
        """The value of an SB3 schedule at this point of the training."""
        return float(schedule(self._current_progress_remaining))

    def _record_update(self, logged: dict[str, list[float]], clip_range: float, weight: float) -> None:
        buffer = self.rollout_buffer
        for name, values in logged.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/clone_penalty", weight)
        self.logger.record(
            "train/explained_variance", explained_variance(buffer.values.ravel(), buffer.returns.ravel())
        )
        self.logger.record("train/clip_range", clip_range)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", torch.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


def _plain(distribution: Distribution) -> list[torch.distributions.Distribution]:
    """The torch distributions inside SB3's wrapper: several, independent ones, for MultiDiscrete actions."""
    inner = distribution.distribution
    return list(inner) if isinstance(inner, list) else [inner]
