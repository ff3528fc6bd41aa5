"""What a clone is held against: its untrained self, random play, a constant action, its demonstrator; how it imitates.

Yardsticks play the first episodes of the clone's final evaluation. The constant action and the demonstrator need no
camera, whatever the clones see, and are played once for all seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import nn

from pipeline.config.stages import Filter, Pretrain
from pipeline.config.task import TaskConfig
from pipeline.data import DatasetMetadata, Trajectories
from pipeline.data.observations import flat_rows, from_rows
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.learning.schedule import final_episodes
from pipeline.names import Metric
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.evaluation import EpisodeRecords, records_of, run_episodes
from pipeline.play.rollouts import choices_of
from pipeline.policies import act_function
from pipeline.policies.networks import scaling_of
from pipeline.statistics.imitation_verdict import Rollouts
from pipeline.statistics.suspicions import CloneEvidence
from pipeline.tasks import Task

MOST_STEPS = 4_000  # demonstrated steps that a clone is held against, evenly spaced
MOST_NUMBERS = 10_000_000  # in the observations of these
SATURATED = 0.99  # of a tanh unit: its gradient is below 0.02


@dataclass(frozen=True)
class Yardsticks:
    """What all clones of a dataset are held against."""

    constant: EpisodeRecords
    demonstrator: EpisodeRecords
    asked: bool  # the demonstrator played the same episodes; else its recorded ones stand for it
    allowance: str  # what must be known of its figures; empty: nothing
    filtered: bool  # not all that it did was recorded

    @property
    def steps(self) -> int:
        """Environment steps that were played here."""
        return self.constant.steps + (self.demonstrator.steps if self.asked else 0)

    def rollouts(
        self,
        clones: Sequence[EpisodeRecords],
        untrained: Sequence[EpisodeRecords],
        random_play: Sequence[EpisodeRecords],
        task: TaskConfig,
    ) -> dict[str, Rollouts]:
        """The figures by which clones, pooled, are judged from what they played, and the policies that they were.

        Success first, or the return where the task's thresholds name that and no success; then the other of the two.
        A figure that nobody recorded of the demonstrator is left out; where both are, it is NaN.
        """
        by_return = "return_mean" in task.thresholds and Metric.SUCCESS_RATE not in task.thresholds
        count, recorded = len(self.constant.episodes), self.demonstrator.metrics
        names = (Metric.RETURN, Metric.SUCCESS) if by_return else (Metric.SUCCESS, Metric.RETURN)
        return {
            name: Rollouts(
                np.stack([records.metrics[name][:count] for records in clones]),
                np.stack([records.metrics[name] for records in untrained]),
                np.stack([records.metrics[name] for records in random_play]),
                self.constant.metrics[name],
                recorded.get(name, np.full(1, np.nan)),
                self.asked,
            )
            for name in [name for name in names if name in recorded] or names
        }


def play_yardsticks(
    task: Task,
    config: Pretrain,
    data: Trajectories,
    metadata: DatasetMetadata,
    find_demonstrator: Callable[[], Demonstrator | None],
) -> Yardsticks:
    """Let the best constant action and the demonstrator play; `task` is seen as it was recorded.

    A demonstrator that is not found, or cannot play these episodes, is known by those that were recorded of it, and the
    allowance says so, with what stood in the way.
    """
    episodes = judged_episodes(task, config)
    action = best_constant(task.action_space, data.actions)

    def always(observations: Any) -> np.ndarray:
        slots = len(next(iter(observations.values()))) if isinstance(observations, dict) else len(observations)
        return np.repeat(action[None], slots, axis=0)

    constant, why = run_episodes(task, always, episodes), ""
    filtered = Filter(**metadata.filter).drops
    try:
        if (demonstrator := find_demonstrator()) is not None:
            allowance = "the demonstrator plays without the filter of its recording" if filtered else ""
            return Yardsticks(constant, run_episodes(task, demonstrator.actor, episodes), True, allowance, filtered)
    except BadInput as error:
        why = f" ({error})"
    allowances = [f"the demonstrator could not be asked again{why}: its recorded episodes stand for it"]
    if metadata.noise_std > 0:
        allowances.append(f"recorded under noise {metadata.noise_std:g}, without which it may be better")
    if filtered:
        allowances.append("and filtered, so that it may be worse")
    recorded = records_of(data, task.action_space)
    return Yardsticks(constant, recorded, False, ", ".join(allowances), filtered)


def judged_episodes(task: Task, config: Pretrain) -> tuple[Episode, ...]:
    """Those of the final evaluation that the yardsticks play too."""
    final = final_episodes(task, config.scenario_set, config.evaluation, config.final_episodes)
    return final[: config.judgement.episodes]


def best_constant(space: gym.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Of actions (n, *act_shape) the mean of a Box, which has the least squared error, else the most frequent one."""
    if isinstance(space, spaces.Box):
        return np.clip(actions.mean(axis=0, dtype=np.float64), space.low, space.high).astype(space.dtype)
    kinds, counts = np.unique(actions, axis=0, return_counts=True)
    return np.asarray(kinds[counts.argmax()])


@dataclass(frozen=True)
class Imitated:
    """How a clone imitates step by step, as shares of the way from the best constant action to the labels."""

    held_out: float  # 1: every held-out action as it was demonstrated; 0: no better than a constant one
    train: float
    untrained: float  # of the untrained policy, held out

    def metrics(self) -> dict[str, float]:
        """`imitation/...`, as metrics of a run."""
        return {
            "imitation/held_out_share": self.held_out,
            "imitation/train_share": self.train,
            "imitation/untrained_held_out_share": self.untrained,
        }


def imitated(
    policy: ActorCriticPolicy, untrained: ActorCriticPolicy, data: Trajectories, train: np.ndarray, held_out: np.ndarray
) -> Imitated:
    """1 - E / E(constant), E the mean squared error of the action, its elements in standard deviations of the labels.

    `train` and `held_out` are indices of episodes; the constant action is the best one of the training episodes. Of
    discrete actions E is the share of wrong components. NaN where the demonstrator's actions do not vary.
    """
    space, training = policy.action_space, data.select(train)
    spread = numbers(space, training.actions).std(axis=0)
    varies = spread > 0
    scale = np.where(varies, spread, 1.0) if isinstance(space, spaces.Box) else 1.0
    constant = best_constant(space, training.actions)

    def share(of: ActorCriticPolicy, episodes: np.ndarray) -> float:
        chosen = data.select(episodes)
        steps = _evenly(chosen)
        labels = numbers(space, chosen.actions[steps])
        acted = numbers(space, act_function(of)(from_rows(chosen.observations[chosen.step_rows[steps]])))
        always = numbers(space, np.repeat(constant[None], len(steps), axis=0))
        ours, constants = (float(np.square((one - labels) / scale)[:, varies].sum()) for one in (acted, always))
        return 1 - ours / constants if constants > 0 else float("nan")

    return Imitated(share(policy, held_out), share(policy, train), share(untrained, held_out))


def evidence(
    policy: ActorCriticPolicy, how: Imitated, data: Trajectories, training_episodes: int, rollout_share: float | None
) -> CloneEvidence:
    """What suspicions against a clone are measured on."""
    space, steps = policy.action_space, _evenly(data)
    rows = data.step_rows[steps]
    labels, units = numbers(space, data.actions), scaling_of(policy).actions
    previous = np.concatenate([np.full_like(labels[:1], np.nan), labels[:-1]])
    previous[data.step_offsets[:-1]] = np.nan
    acted = numbers(space, act_function(policy)(from_rows(data.observations[rows])))
    features, saturated = [], []
    learns = any(True for _ in policy.pi_features_extractor.parameters())
    with torch.no_grad():
        for few in np.array_split(rows, max(1, len(rows) // 256)):
            seen, _ = policy.obs_to_tensor(from_rows(data.observations[few]))
            value = BasePolicy.extract_features(policy, seen, policy.pi_features_extractor)
            features.append(value.numpy())
            for layer in policy.mlp_extractor.policy_net:
                value = layer(value)
                if isinstance(layer, nn.Tanh):
                    saturated.append(float((value.abs() > SATURATED).float().mean()))

    def at_a_bound(actions: np.ndarray) -> float:
        if not isinstance(space, spaces.Box):
            return 0.0
        low, high = space.low.ravel(), space.high.ravel()
        return float(((actions <= low) | (actions >= high)).any(axis=1).mean())

    return CloneEvidence(
        observations=flat_rows(data.observations[rows]).astype(np.float32),
        features=None if learns else np.concatenate(features),
        labels=labels[steps],
        previous=previous[steps],
        episodes=np.repeat(np.arange(len(data)), data.lengths)[steps],
        learnt_labels=None
        if not isinstance(space, spaces.Box)
        else labels[steps]
        if units is None
        else units.inward(labels[steps]),
        saturated=float(np.mean(saturated)) if saturated else 0.0,
        at_bounds=(at_a_bound(acted), at_a_bound(labels[steps])),
        training_episodes=training_episodes,
        train_share=how.train,
        held_out_share=how.held_out,
        rollout_share=rollout_share,
    )


def numbers(space: gym.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Actions (n, *act_shape) as (n, a) float64: a Box's inside its bounds, else 0 or 1 for every choice."""
    if isinstance(space, spaces.Box):
        return np.clip(actions, space.low, space.high).reshape(len(actions), -1).astype(np.float64)
    flat = actions.reshape(len(actions), -1)
    choices = np.broadcast_to(choices_of(space), flat.shape[1:])
    return np.concatenate([np.eye(count)[part] for count, part in zip(choices, flat.T, strict=True)], axis=1)


def _evenly(data: Trajectories) -> np.ndarray:
    """At most so many steps of the episodes as are measured, evenly spaced."""
    elements = flat_rows(data.observations[:1]).shape[1]
    most = min(data.steps, MOST_STEPS, max(200, MOST_NUMBERS // elements))
    return np.unique(np.linspace(0, data.steps - 1, most).astype(np.int64))
