"""The rewards, by name, with checked keyword arguments, and the compiled function that pays them.

Every reward keeps one promise: an episode that crashes scores less than any episode that stays alive to the horizon,
whatever the robot did in either. Where step costs could be saved by crashing, a crash therefore takes the return of the
episode to the worst that staying alive could have scored, less the collision cost.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import njit

from pipeline.config.base import NonNegative, configuration
from pipeline.config.loading import validate
from pipeline.config.task import Snqi
from pipeline.envs.social_nav.layout import NEAR_MISS_CLEARANCE, REWARD_TERMS, Slot
from pipeline.statistics.snqi import load_baseline, load_weights

PROGRESS, SIMPLE, PUNISH_ACTION, SNQI_STEP = range(4)
LARGEST_ACTION_CHANGE = math.sqrt(8.0)  # |a - a_previous| between opposite corners of [-1, 1]^2


@configuration
class Progress:
    """Dense default. Per step:

    progress * (shortening of the shortest path) - living - near_miss * depth - comfort * disturbed - smoothness * |da|

    with depth = (0.5 m - clearance) / 0.5 m in [0, 1], disturbed = force events / pedestrians, |da| scaled to [0, 1].
    Reaching the goal adds `success`. Progress pays down to `retreat` behind the start. A crash takes the return of the
    episode to -collision - progress * retreat - horizon * (living + near_miss + comfort + smoothness).
    """

    progress: NonNegative = 0.25  # per m
    living: NonNegative = 0.003  # per step
    near_miss: NonNegative = 0.015  # per step in contact
    comfort: NonNegative = 0.01  # per step that disturbs everybody
    smoothness: NonNegative = 0.005  # per largest change of action
    success: NonNegative = 2.0
    collision: NonNegative = 2.0
    retreat: NonNegative = 1.0  # m, walking further away from the goal than this costs no more


@configuration
class Simple:
    """-living / horizon per step, -pedestrian or -obstacle on a crash, +goal on arrival."""

    living: NonNegative = 0.1
    pedestrian: NonNegative = 5.0
    obstacle: NonNegative = 2.0
    goal: NonNegative = 1.0

    def __post_init__(self) -> None:
        if min(self.pedestrian, self.obstacle) < self.living:
            raise ValueError(
                f"pedestrian ({self.pedestrian}) and obstacle ({self.obstacle}) must be at least living "
                f"({self.living}), or crashing would score better than staying alive; raise them"
            )


@configuration
class PunishAction(Simple):
    """`Simple` minus action * |a - a_previous| per step.

    A crash takes the return of the episode to that of `Simple` less the action cost of `horizon` largest changes.
    """

    action: NonNegative = 0.1


# `Snqi`, the files of the index, is paid step by step: each normalised term pays its increment, so that the sum over an
# episode telescopes. Near misses are exact, comfort is force events / pedestrians of the step over the horizon, jerk is
# the running mean of finite differences. A crash costs the collision weight and takes every term to its worst.
REWARDS: Final[Mapping[str, type[Any]]] = {
    "progress": Progress,
    "simple": Simple,
    "punish_action": PunishAction,
    "snqi_step": Snqi,
}


def reward_settings(name: str, kwargs: Mapping[str, Any]) -> tuple[int, np.ndarray]:
    """`("simple", {"goal": 2.0})` -> number of the reward, weights (REWARD_TERMS,) for the kernel.

    Raises BadInput for an unknown keyword, and for a weight that is not a finite number >= 0.
    """
    chosen = validate(REWARDS[name], dict(kwargs), f"reward_kwargs of {name!r}")
    values = list(asdict(chosen).values())
    if isinstance(chosen, Snqi):
        weights, baseline = load_weights(Path(chosen.weights)), load_baseline(Path(chosen.baseline))
        values = [weights[key] for key in ("success", "time", "collisions", "near", "comfort", "force_exceed", "jerk")]
        for key in ("near_misses", "force_exceed_events", "jerk_mean"):
            values += [baseline[key].med, 1.0 / (baseline[key].p95 - baseline[key].med)]
    return list(REWARDS).index(name), np.pad(np.array(values, np.float64), (0, REWARD_TERMS - len(values)))


@njit
def _progress(slot: Slot, horizon: int, w: np.ndarray) -> float:
    if slot.collision_pedestrian + slot.collision_wall > 0:
        worst = -w[0] * w[7] - horizon * (w[1] + w[2] + w[3] + w[4])
        return worst - w[6] - slot.reward_sum
    potential = max(slot.shortest_path - slot.path_distance, -w[7]) * w[0]
    costs = w[1]
    if slot.clearance < NEAR_MISS_CLEARANCE:
        costs += w[2] * (1.0 - slot.clearance / NEAR_MISS_CLEARANCE)
    if slot.pedestrians > 0:
        costs += w[3] * slot.step_force_events / slot.pedestrians
    costs += w[4] * slot.action_change / LARGEST_ACTION_CHANGE
    paid = potential - slot.reward_paid
    slot.reward_paid = potential
    return paid - costs + w[5] * slot.success


@njit
def _simple(slot: Slot, horizon: int, w: np.ndarray) -> float:
    return -w[0] / horizon - w[1] * slot.collision_pedestrian - w[2] * slot.collision_wall + w[3] * slot.success


@njit
def _punish_action(slot: Slot, horizon: int, w: np.ndarray) -> float:
    if slot.collision_pedestrian + slot.collision_wall > 0:
        worst = -w[0] - horizon * w[4] * LARGEST_ACTION_CHANGE
        return worst - w[1] * slot.collision_pedestrian - w[2] * slot.collision_wall - slot.reward_sum
    return _simple(slot, horizon, w) - w[4] * slot.action_change


@njit
def _normal(value: float, med: float, scale: float) -> float:
    return min(max((value - med) * scale, 0.0), 1.0)


@njit
def _snqi_step(slot: Slot, horizon: int, w: np.ndarray) -> float:
    failed = slot.collision_pedestrian + slot.collision_wall > 0
    comfort = slot.force_events / (slot.pedestrians * horizon) if slot.pedestrians > 0 else 0.0
    jerk = slot.jerk_sum / (slot.steps - 1) if slot.steps > 1 else 0.0
    costs = w[1] * slot.steps / horizon + w[4] * comfort
    costs += w[3] * _normal(slot.near_misses, w[7], w[8])
    costs += w[5] * _normal(slot.force_events, w[9], w[10])
    costs += w[6] * _normal(jerk, w[11], w[12])
    if failed:
        costs = w[1] + w[2] + w[3] + w[4] + w[5] + w[6]
    paid = -costs - slot.reward_paid
    slot.reward_paid = -costs
    return paid + w[0] * slot.success


@njit
def pay(slot: Slot, settings: Any) -> float:
    """The reward of the step that was just made."""
    if settings.reward == PROGRESS:
        return _progress(slot, settings.horizon, settings.weights)
    if settings.reward == SIMPLE:
        return _simple(slot, settings.horizon, settings.weights)
    if settings.reward == PUNISH_ACTION:
        return _punish_action(slot, settings.horizon, settings.weights)
    return _snqi_step(slot, settings.horizon, settings.weights)
