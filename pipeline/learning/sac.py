"""SB3's SAC as an arm of a comparison: from fresh weights, with demonstrations in its batches if so asked.

    Haarnoja et al. 2018, soft actor-critic; Ball et al. 2023 (RLPD, arXiv 2302.02948): a share of every batch from the
    demonstrations, LayerNorm in the critics.

Without either, every update is SB3's own, bit for bit. What is kept of it is its actor, as a policy that only acts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import ContinuousCritic, SACPolicy
from torch import nn

from pipeline.config.training import SACTraining
from pipeline.data import ENDS, REWARDS, Trajectories, content_digest, read_archive
from pipeline.errors import BadInput, shortened
from pipeline.learning.continued import Continued, restore_optimizer
from pipeline.learning.device import begin_on
from pipeline.learning.divergence import Diverged, not_finite, refuse_environment
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.replay_buffer import (
    MixedDictReplayBuffer,
    MixedReplayBuffer,
    buffer_state,
    restore_buffer,
    transitions,
)
from pipeline.names import TRAJECTORIES_FILE
from pipeline.policies import Scaling, load_tensors, scaling_by_bounds, tensors_of
from pipeline.policies.frozen import FrozenActor, actor_of_sac
from pipeline.policies.networks import images_in, policy_arguments
from pipeline.tasks import Task


class LayerNormPolicy(SACPolicy):
    """SB3's, with LayerNorm between each linear layer of the critics and its activation."""

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        critic = super().make_critic(features_extractor)
        for layers in critic.q_networks:
            assert isinstance(layers, nn.Sequential)
            for i in reversed(range(len(layers) - 1)):  # the last one gives the value
                if isinstance(linear := layers[i], nn.Linear):
                    layers.insert(i + 1, nn.LayerNorm(linear.out_features))
        return critic


class ReplayingSAC(Continued, SAC):
    """SB3's SAC, whose whole state, replay buffer included, goes into a checkpoint.

    `log_every`: environment steps between two lines of its log, where SB3 counts episodes.
    """

    log_every: int = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count(self.critic.optimizer)

    def acting_policy(self) -> FrozenActor:
        """The most likely action of the actor."""
        return actor_of_sac(self.policy)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: all that a model which was just made for the same training lacks."""
        assert self.replay_buffer is not None
        return {
            "policy": tensors_of(self.acting_policy()),
            "networks": tensors_of(self.policy),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
            "log_ent_coef": self.log_ent_coef,
            "replay": buffer_state(self.replay_buffer),
            "episodes": self._episode_num,
            **self.progress(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where a checkpoint was taken. The logger must be set."""
        assert self.replay_buffer is not None
        load_tensors(self.policy, state["networks"])
        for name, optimizer in self._optimizers().items():
            restore_optimizer(optimizer, state["optimizers"][name])
        if self.log_ent_coef is not None:
            with torch.no_grad():
                self.log_ent_coef.copy_(state["log_ent_coef"])
        restore_buffer(self.replay_buffer, state["replay"])
        self._episode_num = state["episodes"]
        self.restore_progress(state)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        named = {"actor": self.actor.optimizer, "critic": self.critic.optimizer, "ent_coef": self.ent_coef_optimizer}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Play `train_freq` steps of every environment, and log at every multiple of `log_every`."""
        before = self.num_timesteps
        played = super().collect_rollouts(env, *args, **{**kwargs, "log_interval": None})
        if self.num_timesteps // self.log_every > before // self.log_every:
            # so it was called until stable-baselines3 2.6
            (self.dump_logs if hasattr(self, "dump_logs") else self._dump_logs)()
        return played

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        """SB3's own. Raises Diverged or BadInput for what is not finite."""
        try:
            return super().learn(*args, **kwargs)
        except ValueError:  # torch's, of a distribution
            self._refuse_what_is_not_finite()
            raise

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """One update. Raises Diverged unless actor and critics still compute with numbers afterwards."""
        super().train(gradient_steps, batch_size)
        if not_finite(self.actor) or not self._losses_are_finite():
            self._refuse_what_is_not_finite()

    def _losses_are_finite(self) -> bool:
        """Those of the last update, which tell of critics that are not, at no cost."""
        return bool(
            np.isfinite([self.logger.name_to_value[f"train/{part}_loss"] for part in ("actor", "critic")]).all()
        )

    @torch.no_grad()
    def _refuse_what_is_not_finite(self) -> None:
        buffer = self.replay_buffer
        assert buffer is not None and self._last_obs is not None
        seen = (self._last_obs, buffer.observations, buffer.next_observations)
        refuse_environment(self.num_timesteps, seen, buffer.rewards)
        broken = not_finite(self.policy)
        if broken is None:  # finite weights may still be too large to compute with
            mean, log_std, _ = self.actor.get_action_dist_params(self.policy.obs_to_tensor(self._last_obs)[0])
            if torch.isfinite(mean).all() and torch.isfinite(log_std).all() and self._losses_are_finite():
                return
        raise Diverged(
            f"diverged at step {self.num_timesteps:,}: {broken or 'what it gives'} is not finite; lower "
            f"sac.learning_rate (now {self.lr_schedule(1):g}), or divide large rewards in the environment"
        )


# --- a job of it -----------------------------------------------------------------------------------------------------


def check_sac(arm: str, settings: SACTraining, budget: int, task: Task, data: Trajectories | None = None) -> None:
    """Raise BadInput, before the first step, for what SAC cannot do; `data`: the demonstrations of its batches."""
    if not isinstance(task.action_space, spaces.Box):
        raise BadInput(
            f"arm {arm!r}: algorithm 'sac' takes continuous actions alone, task {task.config.name!r} has "
            f"{shortened(task.action_space)}; remove the arm, or use algorithm 'ppo'"
        )
    if images_in(task.observation_space):
        raise BadInput(
            f"arm {arm!r}: algorithm 'sac' keeps every observation for replay and takes no pictures; remove the arm, "
            "or use algorithm 'ppo'"
        )
    together = settings.n_envs * settings.train_freq
    if budget % together:
        raise BadInput(
            f"arm {arm!r}: sac.n_envs * sac.train_freq = {together} does not divide the {budget:,} steps of every "
            "arm; choose others"
        )
    if settings.learning_starts >= budget:
        raise BadInput(
            f"arm {arm!r}: sac.learning_starts = {settings.learning_starts} leaves nothing of a budget of "
            f"{budget} steps to learn in; lower it"
        )
    for part in (REWARDS, ENDS):
        if data is not None and part in data.missing:
            raise BadInput(
                f"arm {arm!r} learns from the {part} of demonstrations, which were not recorded; remove the arm, set "
                "its demonstrations to 0, or record a dataset with them"
            )


def make_sac(job: TrainingJob, task: Task, env: VecEnv, seed: int, rollout: int) -> ReplayingSAC:
    """SAC as SB3 makes it of a seed; `rollout`: the environment steps that PPO logs after."""
    settings, demonstrations = job.sac, job.demonstrations
    assert settings is not None
    nested, device = isinstance(task.observation_space, spaces.Dict), begin_on(job.device)
    replay: dict[str, Any] = {}
    if demonstrations is not None:
        assert isinstance(task.action_space, spaces.Box)
        data = Trajectories.from_arrays(read_archive(Path(demonstrations) / TRAJECTORIES_FILE))
        if content_digest(data) != job.demonstrations_digest:
            raise BadInput(f"the demonstrations in {demonstrations!r} changed since the training was asked for")
        mixed = {
            "demonstrations": transitions(task.observation_space, task.action_space, data, device),
            "share": job.demonstrations_share,
        }
        buffer = MixedDictReplayBuffer if nested else MixedReplayBuffer
        replay = {"replay_buffer_class": buffer, "replay_buffer_kwargs": mixed}
    layer_norm = settings.critic_layer_norm
    if layer_norm is None:
        layer_norm = demonstrations is not None
    model = ReplayingSAC(
        policy=LayerNormPolicy if layer_norm else SACPolicy,
        env=env,
        learning_rate=settings.learning_rate,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        train_freq=settings.train_freq,
        gradient_steps=settings.gradient_steps,
        ent_coef=settings.ent_coef,
        target_update_interval=settings.target_update_interval,
        target_entropy=settings.target_entropy,
        policy_kwargs=sac_arguments(task, settings, job.scaling),
        seed=seed,
        device=device,
        **replay,
    )
    model.log_every = rollout
    return model


def sac_arguments(task: Task, settings: SACTraining, scaling: Scaling | None) -> dict[str, Any]:
    """`policy_kwargs` of SB3. Observations are in the units of all arms; actions are scaled by their bounds, always."""
    space, network = task.observation_space, settings.network
    if scaling is None:
        scaling = scaling_by_bounds(space, task.action_space, network)
    arguments = policy_arguments(space, network, Scaling(observations=scaling.observations))
    hidden = list(network.hidden)
    flat = CombinedExtractor if isinstance(space, spaces.Dict) else FlattenExtractor
    return {
        "features_extractor_class": flat,
        **arguments,
        "net_arch": {"pi": hidden, "qf": hidden},
        "n_critics": settings.critics,
    }


def blank_actor(task: Task, settings: SACTraining, scaling: Scaling | None) -> FrozenActor:
    """What the tensors of a training's actor go into."""
    with torch.random.fork_rng(devices=[]):
        arguments = sac_arguments(task, settings, scaling)
        assert isinstance(task.action_space, spaces.Box)
        policy = SACPolicy(task.observation_space, task.action_space, lambda _: 0.0, **arguments)
    return actor_of_sac(policy)
