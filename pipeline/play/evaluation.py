"""Whoever acts into numbers: play given episodes to their end, record them, summarise them with intervals.

Which episodes, and what the figures must be, is decided elsewhere.

    records = run_episodes(task, act_function(policy), task.episodes("train", 7, 100, Purpose.EVALUATE))
    summarise(records, seed=0)["success_rate"]       # Estimate(value=0.93, low=0.88, high=0.97)
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.config.stages import Collect
from pipeline.config.task import SNQI, TaskConfig
from pipeline.data import Trajectories, concatenate
from pipeline.data.formats.npz import refuse_oversize
from pipeline.data.observations import one_row, to_rows
from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.errors import BadInput
from pipeline.names import Metric
from pipeline.play.demonstrators import Actor
from pipeline.play.rollouts import ExecutionNoise, choices_of, evaluation_env, play
from pipeline.statistics.estimate import Estimate, bootstrap_means, bootstrap_quantiles, column_means
from pipeline.statistics.snqi import Baseline, Weights, load_baseline, load_weights, snqi
from pipeline.tasks import Purpose, Task

HISTOGRAM_BINS: Final = 20
RATES: Final = {Metric.SUCCESS: Metric.SUCCESS_RATE, Metric.COLLISION: Metric.COLLISION_RATE}
MEANS: Final = {**RATES, **{name: f"{name}_mean" for name in (Metric.RETURN, Metric.LENGTH)}}  # others keep their names


Recorder = Callable[[Sequence[Episode]], Trajectories]
Counted = Callable[[int], object]  # is told how many more episodes have ended


@dataclass(frozen=True)
class ActionHistogram:
    """How often what was done, over all episodes."""

    edges: np.ndarray | None  # (dims, bins + 1) float64 action units; None for discrete actions
    counts: np.ndarray  # (dims, bins) int64 steps; discrete actions have one row a component

    @classmethod
    def empty(cls, space: gym.Space[Any]) -> "ActionHistogram":
        """Of no action of the space yet."""
        if isinstance(space, spaces.Box):
            bounds = zip(space.low.ravel(), space.high.ravel(), strict=True)
            edges = np.stack([np.linspace(low, high, HISTOGRAM_BINS + 1) for low, high in bounds])
            return cls(edges, np.zeros((len(edges), HISTOGRAM_BINS), np.int64))
        dims, choices = int(np.prod(space.shape or (1,))), int(np.max(choices_of(space)))
        return cls(None, np.zeros((dims, choices), np.int64))

    def add(self, actions: np.ndarray) -> None:
        """Count n actions (n, *act_shape) of the space."""
        dims, bins = self.counts.shape
        cells = actions.reshape(-1, dims)
        if self.edges is not None:
            low, high = self.edges[:, 0], self.edges[:, -1]
            cells = np.clip((cells - low) * (bins / (high - low)), 0, bins - 1)
        cells = cells.astype(np.int64) + bins * np.arange(dims)
        self.counts[:] += np.bincount(cells.ravel(), minlength=dims * bins).reshape(dims, bins)


@dataclass(frozen=True)
class EpisodeRecords:
    """What E finished episodes came to, in the order they were asked for."""

    episodes: tuple[Episode, ...]
    metrics: dict[str, np.ndarray]  # name -> (E,) float64: return, length, success, [collision], the task's figures
    action_histogram: ActionHistogram | None
    steps: int  # environment steps played


def run_episodes(
    task: Task,
    actor: Actor,
    episodes: Sequence[Episode],
    n_envs: int = 100,
    env: EpisodeVecEnv | None = None,
    ended: Counted = lambda count: None,
) -> EpisodeRecords:
    """Play every episode to its end, `n_envs` at a time, or in the slots of an `env` that is to be reused.

    Raises BadInput when the environment lacks a figure that the task names or reports one that is not finite, and when
    an episode does not end.
    """
    histogram, finished = ActionHistogram.empty(task.action_space), dict[Episode, dict[str, float]]()
    own = closing(evaluation_env(task, min(n_envs, len(episodes)))) if env is None else nullcontext(env)
    with own as chosen:
        for step in play(task, chosen, actor, episodes):
            histogram.add(step.actions[step.running])
            finished |= {info["episode_spec"]: task.outcome(info) for info in step.ended.values()}
            ended(len(step.ended))
    figures = [finished[episode] for episode in episodes]
    metrics = {name: np.array([row[name] for row in figures], np.float64) for name in figures[0]}
    for name, values in metrics.items():
        if len(wrong := np.flatnonzero(~np.isfinite(values))):
            where = f"episode {episodes[wrong[0]]}: {name} = {values[wrong[0]]}"
            raise BadInput(f"{where} is not finite; look at the environment")
    metrics = with_snqi(task.config, metrics)
    return EpisodeRecords(tuple(episodes), metrics, histogram, int(metrics[Metric.LENGTH].sum()))


def record_episodes(
    task: Task,
    actor: Actor,
    episodes: Sequence[Episode],
    noise_std: float,
    noise_seed: int,
    n_envs: int = 64,
    ended: Counted = lambda count: None,
    for_one_file: bool = False,
) -> Trajectories:
    """Play and record every episode; labels are the clean actions, the environment receives them with noise (DART).

    `for_one_file`: raises BadInput as soon as they are more than the file of a dataset may hold.

    An episode's noise follows from `noise_seed` and the episode alone, so that the recording does not depend on
    `n_envs`. Laskey et al. 2017, *DART: Noise injection for robust imitation learning*.
    """
    space, kind = task.observation_space, task.action_space.dtype
    done: dict[Episode, Trajectories] = {}
    held = 0  # bytes
    with closing(evaluation_env(task, min(n_envs, len(episodes)))) as env:
        noise = ExecutionNoise(task.action_space, noise_std, noise_seed, env.num_envs)
        begun: list[list[Any]] = [[] for _ in range(env.num_envs)]  # steps of the episode that plays in a slot
        for step in play(task, env, actor, episodes, noise):
            rows = to_rows(space, step.observations)
            for slot in np.flatnonzero(step.running).tolist():
                begun[slot].append((rows[slot], step.actions[slot], step.executed[slot], step.rewards[slot]))
            ended(len(step.ended))
            for slot, info in step.ended.items():
                seen, actions, executed, rewards = zip(*begun[slot], strict=True)
                begun[slot].clear()
                last, truncated = np.arange(len(rewards)) == len(rewards) - 1, info["TimeLimit.truncated"]
                episode, figures = info["episode_spec"], task.outcome(info)
                done[episode] = Trajectories(
                    observations=np.stack([*seen, one_row(space, info["terminal_observation"])]),
                    actions=np.stack(actions).astype(kind),
                    executed_actions=np.stack(executed).astype(kind),
                    rewards=np.array(rewards, np.float32),
                    terminations=last & (not truncated),
                    truncations=last & truncated,
                    lengths=np.array([len(rewards)], np.int64),
                    seeds=np.array([episode.seed], np.int64),
                    scenarios=np.array([episode.scenario]),
                    metrics={name: np.array([figures[name]], np.float64) for name in sorted(figures)},
                )
                held += sum(array.nbytes for array in done[episode].to_arrays().values())
                if for_one_file:
                    refuse_oversize(held)
    recorded = concatenate([done[episode] for episode in episodes])
    return replace(recorded, metrics=with_snqi(task.config, recorded.metrics))


def record(
    task: Task, config: Collect, actor: Actor, elsewhere: Recorder | None = None, ended: Counted = lambda count: None
) -> tuple[Trajectories, int]:
    """The kept episodes, in the asked-for shares, and the environment steps that were played for them.

    By `actor`, here or `elsewhere`.

    What the filter drops is recorded again with fresh seeds, scenario by scenario, a few times; a demonstrator that
    fails more often leaves a dataset that validation finds short.
    """
    asked = task.episodes(config.scenario_set, config.seeds, config.episodes, Purpose.RECORD)
    missing = Counter(episode.scenario for episode in asked)
    waiting = task.recordable_episodes(config.scenario_set, config.seeds, config.episodes, config.filter.drops)
    kept: list[Trajectories] = []
    steps = 0
    while True:
        batch, later, room = list[Episode](), list[Episode](), missing.copy()
        for episode in waiting:
            (batch if room[episode.scenario] > 0 else later).append(episode)
            room[episode.scenario] -= 1
        if not batch:
            return concatenate(kept), steps
        batch.sort(key=lambda episode: episode.seed)  # scenarios interleaved
        if elsewhere is not None:
            part = elsewhere(batch)
        else:
            kept_whole = not config.filter.drops
            noise, seed = config.noise.std, config.seeds[0]
            part = record_episodes(task, actor, batch, noise, seed, config.n_envs, ended, for_one_file=kept_whole)
        good = np.flatnonzero(part.passing(config.filter.min_return, config.filter.only_success))
        kept.append(part.select(good))
        steps += part.steps
        missing -= Counter(str(part.scenarios[index]) for index in good)
        waiting = tuple(later)


def records_of(trajectories: Trajectories, action_space: gym.Space) -> EpisodeRecords:
    """The records of recorded episodes; the histogram counts the demonstrator's clean actions."""
    histogram = ActionHistogram.empty(action_space)
    histogram.add(trajectories.actions)
    episodes = zip(trajectories.scenarios, trajectories.seeds, strict=True)
    return EpisodeRecords(
        episodes=tuple(Episode(str(scenario), int(seed)) for scenario, seed in episodes),
        metrics=trajectories.metrics,
        action_histogram=histogram,
        steps=trajectories.steps,
    )


def concatenate_records(parts: Sequence[EpisodeRecords]) -> EpisodeRecords:
    """Several records as one; the histograms, which may be of different policies, are left out."""
    return EpisodeRecords(
        episodes=tuple(episode for part in parts for episode in part.episodes),
        metrics={name: np.concatenate([part.metrics[name] for part in parts]) for name in parts[0].metrics},
        action_histogram=None,
        steps=sum(part.steps for part in parts),
    )


def episode_figures(metrics: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, np.ndarray]:
    """The figures of `summarise` that are means or rates, before the mean is taken: figure -> (E,) float64."""
    return {MEANS.get(name, name): np.asarray(values, np.float64) for name, values in metrics.items()}


def point_figures(records: EpisodeRecords) -> dict[str, float]:
    """The figures of `summarise` that are means or rates, without intervals: what thresholds are held against."""
    means = column_means(np.stack(list(records.metrics.values()), axis=1))
    return {MEANS.get(name, name): float(mean) for name, mean in zip(records.metrics, means, strict=True)}


def mean_intervals(records: EpisodeRecords, seed: int = 0) -> dict[str, Estimate]:
    """The figures of `summarise` that are means or rates."""
    table = np.stack(list(records.metrics.values()), axis=1)
    return {MEANS.get(n, n): e for n, e in zip(records.metrics, bootstrap_means(table, seed), strict=True)}


def summarise(records: EpisodeRecords, seed: int = 0) -> dict[str, Estimate]:
    """Every figure with its 95 % bootstrap interval over episodes.

    success -> success_rate, collision -> collision_rate, return -> return_mean, _median, _p5, _p95, _std, _min, _max,
    length alike, any other metric by its own name (its mean). Standard deviation and extremes carry no interval:
    their ends equal their value.
    """
    summary = mean_intervals(records, seed)
    for name in (figure for figure in (Metric.RETURN, Metric.LENGTH) if figure in records.metrics):
        values = records.metrics[name]
        quantiles = bootstrap_quantiles(values, (0.5, 0.05, 0.95), seed)
        summary.update(zip((f"{name}_median", f"{name}_p5", f"{name}_p95"), quantiles, strict=True))
        for suffix, value in (("std", values.std()), ("min", values.min()), ("max", values.max())):
            summary[f"{name}_{suffix}"] = Estimate(float(value), float(value), float(value))
    return summary


def summarise_by_scenario(records: EpisodeRecords, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Scenario -> `summarise` of its episodes."""
    scenarios = np.array([episode.scenario for episode in records.episodes])
    return {
        str(scenario): summarise(
            replace(records, metrics={k: v[scenarios == scenario] for k, v in records.metrics.items()}), seed
        )
        for scenario in np.unique(scenarios)
    }


def with_intervals(summary: dict[str, Estimate], of: Collection[str] | None = None) -> dict[str, float]:
    """`{"success_rate": Estimate(0.9, 0.8, 1.0)}` -> the same with `_ci_low` and `_ci_high` beside it, as metrics.

    `of`: the figures that get their intervals; None: all that have one.
    """
    flat: dict[str, float] = {}
    for name, estimate in summary.items():
        flat[name] = estimate.value
        if not name.endswith(("_std", "_min", "_max")) and (of is None or name in of):
            flat[f"{name}_ci_low"], flat[f"{name}_ci_high"] = estimate.low, estimate.high
    return flat


def with_snqi(task: TaskConfig, metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics, with the social navigation quality index of every episode when the task names its files."""
    if task.snqi is None:
        return dict(metrics)
    return {**metrics, SNQI: snqi(metrics, *_snqi_files(task.snqi.weights, task.snqi.baseline))}


@lru_cache(maxsize=4)
def _snqi_files(weights: str, baseline: str) -> tuple[Weights, Baseline]:
    return load_weights(Path(weights)), load_baseline(Path(baseline))
