"""SB3's PPO as both arms use it, and what a start from a clone adds: critic burn-in, and a penalty that fades out.

Everything here is off in a training from scratch. How the clone was made is not known here; what the training itself
decides, it decides by the rules of `adaptive`.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import sqrt
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch.nn import functional

from pipeline.config.training import ADAPTIVE, WarmStart
from pipeline.learning.adaptive import Anchor, BurnIn, Decision, Trial, wide_std
from pipeline.learning.continued import Continued, restore_optimizer
from pipeline.learning.divergence import Diverged, not_finite, refuse_environment
from pipeline.policies import load_tensors, tensors_of


class WarmPPO(Continued, PPO):
    """SB3's PPO with a critic burn-in and a fading penalty KL(clone || policy); `begin_warm_start` arms them.

    Without burn-in and penalty every update is SB3's own, bit for bit.
    """

    exact_budget: bool = False  # SB3 rounds the budget up to whole rollouts; else the last one takes what remains
    warm_start: WarmStart | None = None
    critic_optimizer: torch.optim.Optimizer | None = None  # of the burn-in; None when there is none, or no more
    decisions: tuple[Decision, ...] = ()  # of an adaptive warm start
    _reference: ActorCriticPolicy | None = None
    _trial: Trial | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._burn_in, self._anchor = BurnIn(), Anchor()
        super().__init__(*args, **kwargs)
        self.count(self.policy.optimizer)

    def acting_policy(self) -> ActorCriticPolicy:
        """The policy itself."""
        return self.policy

    def begin_warm_start(self, settings: WarmStart, most_std: float = 1.0) -> None:
        """Take the present policy as the clone to stay near to. Call once, before `learn`.

        `most_std` is the standard deviation of actions that a training from scratch explores in.
        """
        self.warm_start = settings
        log_std = getattr(self.policy, "log_std", None)
        if settings.initial_action_std == ADAPTIVE and log_std is not None:
            own = log_std.exp().tolist()
            self._explore(wide := wide_std(own, most_std), [f"the clone has {std:.3g}" for std in own])
            if any(tried > had for tried, had in zip(wide, own, strict=True)):
                self._trial = Trial(own, [None] * self.n_envs)
        why = "until evaluations show no harm without that"
        if settings.clone_penalty == ADAPTIVE:
            self._decide("clone_penalty", self._anchor.penalty, f"held to the clone {why}")
        if settings.learning_rate_factor == ADAPTIVE:
            self._decide("learning_rate_factor", self._anchor.learning_rate_factor, f"changes little {why}")
        if settings.clone_penalty != 0:
            self._reference = copy.deepcopy(self.policy)
            for parameter in self._reference.parameters():
                parameter.requires_grad_(False)
        if settings.critic_burn_in_steps != 0 or self._trial is not None:
            parts = self.policy.vf_features_extractor, self.policy.mlp_extractor.value_net, self.policy.value_net
            critic = [parameter for part in parts for parameter in part.parameters()]
            self.critic_optimizer = torch.optim.Adam(critic, lr=settings.critic_burn_in_learning_rate)
            self.count(self.critic_optimizer)

    def _explore(self, stds: Sequence[float], reasons: Sequence[str]) -> None:
        """Act with these standard deviations, an action dimension each; the clone is taken to do so too."""
        for policy in (self.policy, self._reference):
            if policy is not None:
                with torch.no_grad():
                    policy.log_std.copy_(torch.tensor(stds).log())
        for i, (std, reason) in enumerate(zip(stds, reasons, strict=True)):
            self._decide(f"initial_action_std/{i}", std, reason)

    def penalty_weight(self) -> float:
        """Weight of the penalty now; a fixed one falls linearly to 0 over `clone_penalty_fade_steps` after burn-in.

        Also after a trial, which may last longer than a fixed burn-in: nothing is learnt before either is over.
        """
        settings = self.warm_start
        if settings is None or self._reference is None:
            return 0.0
        if settings.clone_penalty == ADAPTIVE:
            return self._anchor.penalty
        burn_in = self._burn_in.steps
        if settings.critic_burn_in_steps != ADAPTIVE:
            burn_in = max(self._burn_in.begun + settings.critic_burn_in_steps, burn_in)
        elapsed = max(0, self.num_timesteps - self.n_steps * self.n_envs - burn_in)
        fade = settings.clone_penalty_fade_steps
        return settings.clone_penalty * (max(0.0, 1 - elapsed / fade) if fade else 1.0)

    def on_evaluation(self, returns: np.ndarray) -> None:
        """Take in a scheduled evaluation, (E,) returns of its episodes; the first is of the clone."""
        if self.num_timesteps == 0:
            for decision in self.decisions:  # those before there was a logger
                self.logger.record(f"warm_start/{decision.setting}", decision.value)
        if self.warm_start is None:
            return
        if self._anchor.clone is not None and self.critic_optimizer is not None:
            return  # still the clone
        reason = self._anchor.evaluated(returns)
        if reason is not None and self.warm_start.clone_penalty == ADAPTIVE:
            self._decide("clone_penalty", self._anchor.penalty, reason)
        if reason is not None and self.warm_start.learning_rate_factor == ADAPTIVE:
            self._decide("learning_rate_factor", self._anchor.learning_rate_factor, reason)

    def _decide(self, setting: str, value: float, reason: str) -> None:
        self.decisions = (*self.decisions, Decision(self.num_timesteps, setting, value, reason))
        if self._anchor.clone is not None:  # else there is no logger yet
            self.logger.record(f"warm_start/{setting}", value)

    def _update_learning_rate(self, optimizers: Any) -> None:
        """SB3's schedule, and with a warm start its factor of it."""
        super()._update_learning_rate(optimizers)
        if self.warm_start is None or self.warm_start.learning_rate_factor == 1.0:
            return
        factor = self.warm_start.learning_rate_factor
        rate = self._now(self.lr_schedule) * (self._anchor.learning_rate_factor if factor == ADAPTIVE else factor)
        update_learning_rate(optimizers, rate)
        self.logger.record("train/learning_rate", rate)

    def reward_unit(self) -> float | None:
        env = self.get_env()
        if not isinstance(env, VecNormalize) or (env.training and (env.ret_rms.count < 1 or env.ret_rms.var == 0)):
            return None  # also where no reward was seen yet: then nothing is known of their spread
        return sqrt(env.ret_rms.var + env.epsilon)

    # --- the state at a boundary between rollouts ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a checkpoint: all that a model which was just made for the same training lacks."""
        spread = env.ret_rms if isinstance(env := self.get_env(), VecNormalize) else None
        return {
            "policy": tensors_of(self.policy),
            "optimizer": self.policy.optimizer.state_dict(),
            "critic_optimizer": None if self.critic_optimizer is None else self.critic_optimizer.state_dict(),
            "burn_in": asdict(self._burn_in),
            "trial": self._trial and asdict(self._trial),
            "anchor": asdict(self._anchor),
            "decisions": [asdict(decision) for decision in self.decisions],
            "reward_spread": spread and [float(spread.mean), float(spread.var), float(spread.count)],
            "reward_unit": self.reward_unit(),
            **self.progress(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where a checkpoint was taken. The logger must be set."""
        load_tensors(self.policy, state["policy"])
        restore_optimizer(self.policy.optimizer, state["optimizer"])
        if state["critic_optimizer"] is None:
            self.critic_optimizer = None
        elif self.critic_optimizer is not None:
            restore_optimizer(self.critic_optimizer, state["critic_optimizer"])
        self._burn_in, self._anchor = BurnIn(**state["burn_in"]), Anchor(**state["anchor"])
        self._trial = Trial(**state["trial"]) if state["trial"] else None
        self.decisions = tuple(Decision(**decision) for decision in state["decisions"])
        explored = {d.setting: d.value for d in self.decisions if d.setting.startswith("initial_action_std/")}
        if explored and self._reference is not None:  # a trial that failed took the clone back too
            with torch.no_grad():
                self._reference.log_std.copy_(torch.tensor(list(explored.values())).log())
        if isinstance(env := self.get_env(), VecNormalize):
            mean, var, count = state["reward_spread"]
            env.ret_rms.mean, env.ret_rms.var, env.ret_rms.count = np.array(mean), np.array(var), count
        self.restore_progress(state)

    def dump_logs(self, iteration: int = 0) -> None:
        """Log the rollout, counted from the beginning of the training."""
        super().dump_logs(-(-self.num_timesteps // (self.n_steps * self.n_envs)))

    # --- learning -----------------------------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play one rollout. Raises BadInput for an environment that shows what is no number."""
        remaining = (self._total_timesteps - self.num_timesteps) // self.n_envs
        if self.exact_budget and remaining < n_rollout_steps:
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
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except ValueError:  # torch's, of a distribution
            self._refuse_what_is_not_finite()
            raise

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        for i, info in enumerate(infos):
            if self._trial is not None and "episode" in info:
                self._trial.ended(i, float(info["episode"]["r"]))

    def train(self) -> None:
        """One update: the critic alone in burn-in, then PPO with the penalty, then plain PPO.

        Raises Diverged unless the policy still computes with numbers afterwards.
        """
        if self.critic_optimizer is not None and self._burn_in_is_over():
            self.critic_optimizer = None
        weight = self.penalty_weight()
        try:
            if self.critic_optimizer is not None:
                self._train_critic(self.critic_optimizer)
            elif weight > 0:
                self._train_near_clone(weight)
            else:
                super().train()
        except ValueError:  # torch's, of a distribution, in the middle of the update
            self._refuse_what_is_not_finite()
            raise
        self._refuse_what_is_not_finite()

    def _burn_in_is_over(self) -> bool:
        """Is the rollout that was just played none of the burn-in any more?"""
        assert self.warm_start is not None
        if self._trial is not None:
            assert self._anchor.clone is not None
            verdict = self._trial.verdict(self._anchor.clone)
            if verdict is None:
                return False
            borne, why = verdict
            stds = self.policy.log_std.exp().tolist() if borne else self._trial.own
            self._explore(stds, [why] * len(stds))
            self._trial = None
            if not borne:  # the critic has seen what is not done any more
                self._burn_in = BurnIn(begun=self.num_timesteps)
                return False
        steps, reason = self.warm_start.critic_burn_in_steps, None
        if steps == ADAPTIVE:
            reason = self._burn_in.ends(self._explained_variance())
        if reason is None and (steps == ADAPTIVE or self.num_timesteps <= self._burn_in.begun + steps):
            return False
        self._burn_in.steps = self.num_timesteps - self.rollout_buffer.buffer_size * self.n_envs
        if reason is not None:
            self._decide("critic_burn_in_steps", self._burn_in.steps, reason)
        return True

    def _train_critic(self, optimizer: torch.optim.Optimizer) -> None:
        losses: list[float] = []
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                loss = functional.mse_loss(self.policy.predict_values(batch.observations).flatten(), batch.returns)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        self.logger.record("train/value_loss", float(np.mean(losses)))
        self.logger.record("train/explained_variance", self._explained_variance())
        self.logger.record("train/critic_burn_in", 1.0)

    def _train_near_clone(self, weight: float) -> None:
        """SB3's PPO update (Schulman et al. 2017) with `weight * KL(clone || policy)` added to the loss."""
        assert self._reference is not None
        policy = self.policy
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        clip_range = self._now(self.clip_range)
        discrete = isinstance(self.action_space, spaces.Discrete)
        logged: dict[str, list[float]] = defaultdict(list)
        too_far = False
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                actions = batch.actions.long().flatten() if discrete else batch.actions
                distribution = policy.get_distribution(batch.observations)
                values, log_prob = policy.predict_values(batch.observations).flatten(), distribution.log_prob(actions)
                advantages = batch.advantages
                if self.normalize_advantage and len(advantages) > 1:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                log_ratio = log_prob - batch.old_log_prob
                ratio = log_ratio.exp()
                # L_clip = E[min(r A, clip(r, 1 - eps, 1 + eps) A)], r the ratio of new and old probability
                clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
                policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
                if self.clip_range_vf is not None:  # the critic stays near what it said in the rollout
                    limit = self._now(self.clip_range_vf)
                    values = batch.old_values + torch.clamp(values - batch.old_values, -limit, limit)
                value_loss = functional.mse_loss(batch.returns, values)
                entropy = distribution.entropy()
                entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()  # estimated without a formula
                with torch.no_grad():
                    clone = _plain(self._reference.get_distribution(batch.observations))
                    # unbiased and never negative (http://joschu.net/blog/kl-approx.html)
                    approx_kl = ((ratio - 1) - log_ratio).mean().item()
                pairs = zip(clone, _plain(distribution), strict=True)
                # subtle: KL(clone || policy) and not the reverse, which would let the policy drop what the clone does
                parts = [torch.distributions.kl_divergence(before, now) for before, now in pairs]
                divergence = torch.stack([d.sum(dim=1) if d.ndim > 1 else d for d in parts]).sum(dim=0).mean()
                loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss + weight * divergence
                logged["policy_gradient_loss"].append(policy_loss.item())
                logged["value_loss"].append(value_loss.item())
                logged["entropy_loss"].append(entropy_loss.item())
                logged["clip_fraction"].append(((ratio - 1).abs() > clip_range).float().mean().item())
                logged["approx_kl"].append(approx_kl)
                logged["clone_divergence"].append(divergence.item())
                logged["loss"].append(loss.item())
                too_far = self.target_kl is not None and approx_kl > 1.5 * self.target_kl
                if too_far:
                    break
                policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
                policy.optimizer.step()
            self._n_updates += 1
            if too_far:
                break
        for name, listed in logged.items():
            self.logger.record(f"train/{name}", float(np.mean(listed)))
        self.logger.record("train/clone_penalty", weight)
        self.logger.record("train/explained_variance", self._explained_variance())
        self.logger.record("train/clip_range", clip_range)
        if hasattr(policy, "log_std"):
            self.logger.record("train/std", torch.exp(policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _explained_variance(self) -> float:
        """Of the last rollout's returns, by the critic as it was when they were played."""
        return float(explained_variance(self.rollout_buffer.values.ravel(), self.rollout_buffer.returns.ravel()))

    def _now(self, schedule: Any) -> float:
        """The value of an SB3 schedule at this point of the training."""
        return float(schedule(self._current_progress_remaining))

    @torch.no_grad()
    def _refuse_what_is_not_finite(self) -> None:
        assert self._last_obs is not None
        refuse_environment(self.num_timesteps, [self._last_obs], self.rollout_buffer.rewards)
        broken = not_finite(self.policy)
        if broken is None:  # finite weights may still be too large to compute with
            observations = self.policy.obs_to_tensor(self._last_obs)[0]
            try:
                distribution = self.policy.get_distribution(observations)
                given = distribution.mode(), distribution.entropy(), self.policy.predict_values(observations)
                if all(bool(torch.isfinite(tensor).all()) for tensor in given if tensor is not None):
                    return
            except ValueError:  # torch's, of a distribution
                pass
        rate, setting = self._now(self.lr_schedule), "training.learning_rate"
        if self.critic_optimizer is not None:
            rate, setting = self.critic_optimizer.param_groups[0]["lr"], "warm_start.critic_burn_in_learning_rate"
        raise Diverged(
            f"diverged at step {self.num_timesteps:,}: {broken or 'what it gives'} is not finite; lower {setting} (now "
            f"{rate:g})"
        )


def _plain(distribution: Distribution) -> list[torch.distributions.Distribution]:
    """The torch distributions inside SB3's wrapper: several, independent ones, for MultiDiscrete actions."""
    inner = distribution.distribution
    return list(inner) if isinstance(inner, list) else [inner]
