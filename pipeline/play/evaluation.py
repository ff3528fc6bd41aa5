"""Whoever acts into numbers: play given episodes to their end, record them, summarise them with intervals.

Which episodes, and what the figures must be, is decided elsewhere.

    records = run_episodes(task, act_function(policy), task.episodes("train", 7, 100, Purpose.EVALUATE))
    summarise(records, seed=0)["success_rate"]       # Estimate(value=0.93, low=0.88, high=0.97)
"""

import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.data import Trajectories, TrajectoryBuilder
from pipeline.data.observations import span_of
from pipeline.envs.calling import not_ended
from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.errors import BadInput
from pipeline.names import Metric
from pipeline.play.demonstrators import Actor, ActorSlots
from pipeline.policies import Observations
from pipeline.statistics import Estimate, bootstrap_means, bootstrap_quantiles, column_means
from pipeline.statistics.snqi import Baseline, Weights, load_baseline, load_weights, snqi
from pipeline.tasks import Task

HISTOGRAM_BINS: Final = 20
SLOTS: Final = 16  # environments side by side where each is an object that holds memory; more are hardly faster
CAMERAS: Final = 8  # the same where each is drawn: it holds a drawing context of its own
LONGEST_BATCHED: Final = (
    1_000_000  # steps of an episode; what is not batched ends far earlier (`tasks.LONGEST_EPISODE`)
)
RATES: Final = {Metric.SUCCESS: Metric.SUCCESS_RATE, Metric.COLLISION: Metric.COLLISION_RATE}
SNQI: Final = "snqi"
_FLUSH_STEPS: Final = 512  # steps of a batch after which kept actions are counted, so that memory stays bounded
_NOISE_BLOCK: Final = 256


@dataclass(frozen=True)
class ActionHistogram:
    """How often what was done, over all episodes."""

    edges: np.ndarray | None  # (dims, bins + 1) float64 action units; None for discrete actions
    counts: np.ndarray  # (dims, bins) int64 steps; discrete actions have one row a component


@dataclass(frozen=True)
class EpisodeRecords:
    """What E finished episodes came to, in the order they were asked for."""

    episodes: tuple[Episode, ...]
    metrics: dict[str, np.ndarray]  # name -> (E,) float64: return, length, success, [collision], the task's figures
    action_histogram: ActionHistogram | None
    steps: int  # environment steps played

    def select(self, indices: Sequence[int]) -> "EpisodeRecords":
        """The records of some of the episodes; the histogram, which is of all, is left out."""
        rows = np.asarray(indices, np.int64)
        return EpisodeRecords(
            episodes=tuple(self.episodes[i] for i in rows),
            metrics={name: values[rows] for name, values in self.metrics.items()},
            action_histogram=None,
            steps=int(self.metrics[Metric.LENGTH][rows].sum()),
        )


def evaluation_env(task: Task, n_envs: int = 100) -> EpisodeVecEnv:
    """An environment for `run_episodes` to reuse; what it plays is given there.

    At most `SLOTS` environments play side by side unless they are rows of a batched one. How many there are changes no
    figure.
    """
    if not task.batched:
        n_envs = min(n_envs, CAMERAS if task.use_camera else SLOTS)
    # a stream must hold an episode for spaces to be known; it is never played
    anything = Episode(next(iter(task.config.scenarios)), 0)
    return task.make_vec_env([iter((anything,)) for _ in range(n_envs)])


def run_episodes(
    task: Task, actor: Actor, episodes: Sequence[Episode], n_envs: int = 100, env: EpisodeVecEnv | None = None
) -> EpisodeRecords:
    """Play every episode to its end, `n_envs` at a time, or in the slots of an `env` that is to be reused.

    A slot that is done takes the next episode that nobody played yet, so short episodes are not favoured.
    Raises BadInput when the environment lacks a figure that the task names or reports one that is not finite, and when
    an episode does not end.
    """
    _refuse_unplayable(episodes)
    counter, finished = _ActionCounter(task.action_space), dict[Episode, dict[str, float]]()
    own = closing(evaluation_env(task, min(n_envs, len(episodes)))) if env is None else nullcontext(env)
    with own as chosen:
        for step in _steps(task, chosen, actor, episodes):
            counter.add(step.clean)
            for slot in np.flatnonzero(step.dones).tolist():
                finished[step.infos[slot]["episode_spec"]] = task.outcome(step.infos[slot])
    metrics = with_snqi(task, _columns(episodes, finished))
    return EpisodeRecords(tuple(episodes), metrics, counter.histogram(), int(metrics[Metric.LENGTH].sum()))


def record_episodes(
    task: Task, actor: Actor, episodes: Sequence[Episode], noise_std: float, noise_seed: int, n_envs: int = 64
) -> Trajectories:
    """Play and record every episode; labels are the clean actions, the environment receives them with noise (DART).

    Box: `clip(clean + N(0, noise_std * half the range))`; other actions: with probability `noise_std` a random one. An
    episode's noise follows from `noise_seed` and the episode alone, so that the recording does not depend on `n_envs`.
    Laskey et al. 2017, *DART: Noise injection for robust imitation learning*.
    """
    _refuse_unplayable(episodes)
    with closing(evaluation_env(task, min(n_envs, len(episodes)))) as env:
        builder = TrajectoryBuilder(episodes, task.observation_space, task.action_space, env.num_envs)
        noise = _ExecutionNoise(task.action_space, noise_std, noise_seed, env.num_envs)
        for step in _steps(task, env, actor, episodes, noise):
            builder.step(step.running, step.observations, step.actions, step.executed, step.rewards)
            for slot in np.flatnonzero(step.dones).tolist():
                info = step.infos[slot]
                builder.finish(
                    slot,
                    info["episode_spec"],
                    info["terminal_observation"],
                    truncated=info["TimeLimit.truncated"],
                    metrics=task.outcome(info),
                )
    recorded = builder.build()
    return replace(recorded, metrics=with_snqi(task, recorded.metrics))


@dataclass(frozen=True)
class _Step:
    """One step of all n slots; `observations` are those that were acted on."""

    running: np.ndarray  # (n,) bool
    observations: Observations  # (n, *obs_shape)
    clean: np.ndarray  # (r, *act_shape) of the running slots
    actions: np.ndarray  # (n, *act_shape) the same, zeros for idle slots
    executed: np.ndarray  # (n, *act_shape) what the environments were given
    rewards: np.ndarray  # (n,) float32
    dones: np.ndarray  # (n,) bool
    infos: Sequence[dict[str, Any]]


def _steps(
    task: Task, env: EpisodeVecEnv, actor: Actor, episodes: Sequence[Episode], noise: "_ExecutionNoise | None" = None
) -> Iterator[_Step]:
    """Play every episode to its end, step by step; whichever slot is free takes the next."""
    queue, slots = iter(episodes), ActorSlots(actor, env.num_envs, task.action_space)
    played: list[Episode] = [episodes[0]] * env.num_envs
    lengths = np.zeros(env.num_envs, np.int64)

    def taken_by(slot: int) -> Iterator[Episode]:
        for episode in queue:
            played[slot], lengths[slot] = episode, 0
            if noise is not None:
                noise.begin(slot, episode)
            yield episode

    env.set_streams([taken_by(slot) for slot in range(env.num_envs)])
    observations: Observations = env.reset()
    while env.running.any():
        running = env.running.copy()
        clean, actions = slots.act(observations, running)
        executed = actions
        if noise is not None:
            executed = actions.copy()
            executed[running] = noise.disturb(clean, np.flatnonzero(running))
        lengths += running
        if lengths.max() > LONGEST_BATCHED:
            endless = played[int(lengths.argmax())]
            raise BadInput(not_ended(task.config.name, endless.scenario, endless.seed, LONGEST_BATCHED))
        after, rewards, dones, infos = env.step(executed)
        slots.ended(dones)
        yield _Step(running, observations, clean, actions, executed, rewards, dones, infos)
        observations = after


def records_of(trajectories: Trajectories, action_space: gym.Space) -> EpisodeRecords:
    """The records of recorded episodes; the histogram counts the demonstrator's clean actions."""
    counter = _ActionCounter(action_space)
    counter.add(trajectories.actions)
    episodes = zip(trajectories.scenarios, trajectories.seeds, strict=True)
    return EpisodeRecords(
        episodes=tuple(Episode(str(scenario), int(seed)) for scenario, seed in episodes),
        metrics=trajectories.metrics,
        action_histogram=counter.histogram(),
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


def point_figures(records: EpisodeRecords) -> dict[str, float]:
    """The figures of `summarise` that are means or rates, without intervals: what thresholds are held against."""
    means = column_means(np.stack(list(records.metrics.values()), axis=1))
    return {_mean_name(name): float(mean) for name, mean in zip(records.metrics, means, strict=True)}


def mean_intervals(records: EpisodeRecords, seed: int = 0) -> dict[str, Estimate]:
    """The figures of `summarise` that are means or rates."""
    table = np.stack(list(records.metrics.values()), axis=1)
    return {_mean_name(n): e for n, e in zip(records.metrics, bootstrap_means(table, seed), strict=True)}


def summarise(records: EpisodeRecords, seed: int = 0) -> dict[str, Estimate]:
    """Every figure with its 95 % bootstrap interval over episodes.

    success -> success_rate, collision -> collision_rate, return -> return_mean, _median, _p5, _p95, _std, _min, _max,
    length alike, any other metric by its own name (its mean). Standard deviation and extremes carry no interval:
    their ends equal their value.
    """
    summary = mean_intervals(records, seed)
    for name in (Metric.RETURN, Metric.LENGTH):
        values = records.metrics[name]
        quantiles = bootstrap_quantiles(values, (0.5, 0.05, 0.95), seed)
        summary.update(zip((f"{name}_median", f"{name}_p5", f"{name}_p95"), quantiles, strict=True))
        for suffix, value in (("std", values.std()), ("min", values.min()), ("max", values.max())):
            summary[f"{name}_{suffix}"] = Estimate(float(value), float(value), float(value))
    return summary


def summarise_by_scenario(records: EpisodeRecords, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Scenario -> `summarise` of its episodes."""
    rows: dict[str, list[int]] = {}
    for index, episode in enumerate(records.episodes):
        rows.setdefault(episode.scenario, []).append(index)
    return {scenario: summarise(records.select(rows[scenario]), seed) for scenario in sorted(rows)}


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


def _mean_name(metric: str) -> str:
    if metric in (Metric.RETURN, Metric.LENGTH):
        return f"{metric}_mean"
    return RATES.get(metric, metric)


def _refuse_unplayable(episodes: Sequence[Episode]) -> None:
    if not episodes:
        raise BadInput("no episodes to play; ask for at least one")
    if len(set(episodes)) != len(episodes):
        raise ValueError("the episodes are not distinct")


def _columns(episodes: Sequence[Episode], finished: dict[Episode, dict[str, float]]) -> dict[str, np.ndarray]:
    missing = [episode for episode in episodes if episode not in finished]
    if missing:
        raise RuntimeError(f"the environment did not finish {len(missing)} episodes, the first is {missing[0]}")
    figures = [finished[episode] for episode in episodes]
    columns = {name: np.array([row[name] for row in figures], np.float64) for name in figures[0]}
    for name, values in columns.items():
        if not np.isfinite(values).all():
            index = int(np.flatnonzero(~np.isfinite(values))[0])
            raise BadInput(
                f"episode {episodes[index]}: {name} = {values[index]} is not finite; look at the environment"
            )
    return columns


def with_snqi(task: Task, metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics, with the social navigation quality index of every episode when the task names its files."""
    setting = task.config.snqi
    if setting is None:
        return metrics
    weights, baseline = _snqi_files(setting.weights, setting.baseline)
    return {**metrics, SNQI: snqi(metrics, weights, baseline)}


@lru_cache(maxsize=4)
def _snqi_files(weights: str, baseline: str) -> tuple[Weights, Baseline]:
    return load_weights(Path(weights)), load_baseline(Path(baseline))


class _ActionCounter:
    """Counts the actions of many steps into an `ActionHistogram`."""

    def __init__(self, space: gym.Space) -> None:
        self._space = space
        self._pending: list[np.ndarray] = []
        self._edges: np.ndarray | None = None
        if isinstance(space, spaces.Box):
            bounds = zip(space.low.ravel(), space.high.ravel(), strict=True)
            self._edges = np.stack([np.linspace(a, b, HISTOGRAM_BINS + 1) for a, b in bounds])
            self._counts = np.zeros((len(self._edges), HISTOGRAM_BINS), np.int64)
        else:
            dims, choices = int(np.prod(space.shape or (1,))), int(np.max(_choices(space)))
            self._counts = np.zeros((dims, choices), np.int64)

    def add(self, actions: np.ndarray) -> None:
        self._pending.append(actions)
        if len(self._pending) >= _FLUSH_STEPS:
            self._flush()

    def histogram(self) -> ActionHistogram:
        self._flush()
        return ActionHistogram(self._edges, self._counts)

    def _flush(self) -> None:
        if not self._pending:
            return
        dims, bins = self._counts.shape
        flat = np.concatenate([a.reshape(-1, dims) for a in self._pending])
        self._pending.clear()
        if self._edges is None:
            cells = flat.astype(np.int64)
        else:
            low, high = self._edges[:, 0], self._edges[:, -1]
            cells = np.clip((flat - low) * (bins / (high - low)), 0, bins - 1).astype(np.int64)
        cells += bins * np.arange(dims)
        self._counts += np.bincount(cells.ravel(), minlength=dims * bins).reshape(dims, bins)


class _ExecutionNoise:
    """The noise of the episodes that play in n slots; each episode has its own generator."""

    def __init__(self, space: gym.Space, std: float, seed: int, n_envs: int) -> None:
        if not isinstance(space, spaces.Box) and not 0 <= std <= 1:
            raise BadInput(f"noise.std = {std}: for discrete actions it is the chance of a random one, from 0 to 1")
        self._space, self._std, self._seed = space, std, seed
        self._blocks: list[Iterator[np.ndarray]] = [iter(())] * n_envs

    def begin(self, slot: int, episode: Episode) -> None:
        """An episode begins in a slot, and its noise with it."""
        words = [self._seed, episode.seed, zlib.crc32(episode.scenario.encode())]
        self._blocks[slot] = self._draws(np.random.default_rng(words))

    def _draws(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """One step's noise after the other: a Gaussian vector, or (uniform number, *random action)."""
        while True:
            if isinstance(self._space, spaces.Box):
                yield from rng.standard_normal((_NOISE_BLOCK, *(self._space.shape or ())))
            else:
                uniform = rng.random((_NOISE_BLOCK, 1))
                action = rng.integers(_choices(self._space), size=(_NOISE_BLOCK, *(self._space.shape or ())))
                yield from np.concatenate([uniform, action.reshape(_NOISE_BLOCK, -1)], axis=1)

    def disturb(self, clean: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Executed actions for the clean ones (r, *act_shape) of these r slots."""
        if self._std == 0:
            return clean
        drawn = np.stack([next(self._blocks[slot]) for slot in slots])
        if isinstance(self._space, spaces.Box):
            noisy = clean + self._std * span_of(self._space) / 2 * drawn
            return np.clip(noisy, self._space.low, self._space.high).astype(self._space.dtype)
        random = drawn[:, 1:].reshape(clean.shape)
        replaced = (drawn[:, 0] < self._std).reshape(-1, *[1] * (clean.ndim - 1))
        return np.where(replaced, random, clean).astype(clean.dtype)


def _choices(space: gym.Space) -> Any:
    """How many values every component of a discrete action has."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec
    return int(space.n) if isinstance(space, spaces.Discrete) else 2
