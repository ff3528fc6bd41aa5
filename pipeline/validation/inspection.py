"""Looks at a dataset: statistics per feature, actions, returns and lengths, outcomes by scenario, and what stands out.

Nothing here judges (that is `validate`) or draws (that is `pipeline.report`): it turns a dataset into numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from gymnasium import spaces

from pipeline.data import REWARDS, DatasetMetadata, Trajectories
from pipeline.data.observations import flat_rows
from pipeline.data.spaces import space_bounds, space_from_json
from pipeline.errors import BadInput
from pipeline.names import Metric

OUTLIER_SCORE = 3.5  # Iglewicz and Hoaglin (1993), *How to detect and handle outliers*
ACTION_BINS = 20
DISTRIBUTION_BINS = 20
MOST_DISCRETE = 100_000  # values of a discrete action that are counted one by one
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class FeatureStatistics:
    """One feature of the observations over all rows."""

    index: int  # flat
    mean: float
    std: float
    min: float
    max: float
    low: float | None  # bound of the observation space; None: unbounded
    high: float | None
    constant: bool


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; of a discrete action, counts per value."""

    name: str
    edges: tuple[float, ...]  # (bins + 1,); for discrete values the values themselves, (bins,)
    counts: tuple[int, ...]  # (bins,)


@dataclass(frozen=True)
class Distribution:
    """One figure over the episodes."""

    name: str
    mean: float
    std: float
    min: float
    max: float
    percentiles: dict[str, float]  # "5", "25", "50", "75", "95"
    histogram: Histogram


@dataclass(frozen=True)
class ScenarioOutcome:
    """The episodes of one scenario: mean of every figure."""

    scenario: str
    episodes: int
    means: dict[str, float]


@dataclass(frozen=True)
class Outlier:
    """An episode that differs from the others of the dataset, and in what."""

    episode: int
    scenario: str
    seed: int
    figure: str  # "return", "length" or "action_jerk"
    value: float
    median: float  # of the dataset
    score: float  # robust z-score
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What there is to see in a dataset."""

    dataset_id: str
    origin: str  # whose demonstrations these are
    episodes: int
    steps: int
    features: tuple[FeatureStatistics, ...]
    actions: tuple[Histogram, ...]
    distributions: tuple[Distribution, ...]  # return, length, action_jerk, then every other figure
    scenarios: tuple[ScenarioOutcome, ...]
    outliers: tuple[Outlier, ...]  # most extreme first


def inspect_dataset(trajectories: Trajectories, metadata: DatasetMetadata) -> Inspection:
    """Statistics and outliers of a sound dataset. Raises BadInput for one without episodes or with NaN in it."""
    if not trajectories.steps:
        raise BadInput("the dataset holds no episode; there is nothing to inspect")
    action_space = space_from_json(metadata.action_space)
    returns = {} if REWARDS in metadata.missing else {Metric.RETURN: trajectories.returns()}
    judged: dict[str, np.ndarray] = {
        **{name: trajectories.metrics.get(name, values) for name, values in returns.items()},
        Metric.LENGTH: trajectories.lengths.astype(np.float64),
        "action_jerk": action_jerk(trajectories, action_space),
    }
    figures = {**judged, **{name: values for name, values in trajectories.metrics.items() if name not in judged}}
    for name, values in figures.items():
        if not np.isfinite(values).all():
            raise BadInput(f"metric {name} holds a value that is not finite; validate the dataset first")
    distributions = []
    for name, values in figures.items():
        percentiles = zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
        ends = float(values.mean()), float(values.std()), float(values.min()), float(values.max())
        histogram = _histogram(name, values, DISTRIBUTION_BINS)
        distributions.append(Distribution(name, *ends, {str(p): float(v) for p, v in percentiles}, histogram))
    by_scenario = pd.DataFrame(figures).groupby(trajectories.scenarios)
    means: Any = by_scenario.mean().to_dict("index")
    outliers = []
    for figure, values in judged.items():
        scores, median = robust_scores(values), float(np.median(values))
        for episode in np.flatnonzero(np.abs(scores) > OUTLIER_SCORE).tolist():
            value, score = float(values[episode]), float(scores[episode])
            reason = (
                f"{figure} {value:.4g} is {abs(score):.1f} robust standard deviations "
                f"{'above' if value > median else 'below'} the median {median:.4g}"
            )
            scenario, seed = str(trajectories.scenarios[episode]), int(trajectories.seeds[episode])
            outliers.append(Outlier(episode, scenario, seed, figure, value, median, score, reason))
    return Inspection(
        dataset_id=metadata.dataset_id,
        origin=metadata.origin,
        episodes=len(trajectories),
        steps=trajectories.steps,
        features=_features(trajectories.observations, space_from_json(metadata.observation_space)),
        actions=_action_histograms(trajectories.actions, action_space),
        distributions=tuple(distributions),
        scenarios=tuple(ScenarioOutcome(str(s), len(episodes), means[s]) for s, episodes in by_scenario),
        outliers=tuple(sorted(outliers, key=lambda outlier: -abs(outlier.score))),
    )


def action_jerk(trajectories: Trajectories, space: spaces.Space) -> np.ndarray:
    """(N,) mean norm of the second difference of the labels, in half ranges of the action space per step squared.

    For discrete actions: the share of steps at which the action changes. 0 for episodes too short to tell.
    """
    actions, ends = flat_rows(trajectories.actions), trajectories.step_offsets[1:-1]
    if actions.dtype.kind == "f":
        low, high = space_bounds(space)
        half_range = (high.astype(np.float64) - low) / 2
        actions = actions / np.where(np.isfinite(half_range) & (half_range > 0), half_range, 1.0)
        jerk = [np.linalg.norm(np.diff(a, n=2, axis=0), axis=1) for a in np.split(actions, ends)]
    else:
        jerk = [(a[1:] != a[:-1]).any(axis=1) for a in np.split(actions, ends)]
    return np.array([float(of_steps.mean()) if len(of_steps) else 0.0 for of_steps in jerk])


def _features(observations: np.ndarray, space: spaces.Space) -> tuple[FeatureStatistics, ...]:
    rows = flat_rows(observations)
    bounds = zip(*(np.broadcast_to(bound, rows.shape[1:]) for bound in space_bounds(space)), strict=True)
    found = []
    for index, (low, high) in enumerate(bounds):  # one by one: of pictures all as float64 would not fit into memory
        values = rows[:, index].astype(np.float64)
        if not np.isfinite(values).all():
            raise BadInput("the observations hold a value that is not finite; validate the dataset first")
        least, most = float(values.min()), float(values.max())
        away = values - values[0]  # a constant is its own mean then, to the last bit
        mean, std = float(values[0] + away.mean()), float(away.std())
        ends = [float(bound) if np.isfinite(bound) else None for bound in (low, high)]
        found.append(FeatureStatistics(index, mean, std, least, most, ends[0], ends[1], least == most))
    return tuple(found)


def _action_histograms(actions: np.ndarray, space: spaces.Space) -> tuple[Histogram, ...]:
    """Of every element of the actions, over its space and what lies outside of that: a fault is to be seen."""
    rows = flat_rows(actions)
    if not np.isfinite(rows).all():
        raise BadInput("the actions hold a value that is not finite; validate the dataset first")
    low, high = space_bounds(space)
    histograms = []
    for column in range(rows.shape[1]):
        values, name = rows[:, column], f"action[{column}]"
        least, most = values.min().item(), values.max().item()
        if rows.dtype.kind == "f":
            first, last = (float(bound) for bound in (low[column], high[column]))
            span = min(first, least) if np.isfinite(first) else least, max(last, most) if np.isfinite(last) else most
            histograms.append(_histogram(name, values, ACTION_BINS, span))
        else:
            start, end = min(int(low[column]), int(least)), max(int(high[column]), int(most))
            if end - start >= MOST_DISCRETE:
                raise BadInput(
                    f"{name} has values from {int(least)} to {int(most)}, its space from {low[column]} to "
                    f"{high[column]}: more than {MOST_DISCRETE} to count; validate the dataset first"
                )
            counts = np.bincount(values.astype(np.int64) - start, minlength=end - start + 1)
            edges = np.arange(start, end + 1, dtype=np.float64)
            histograms.append(Histogram(name, tuple(edges.tolist()), tuple(counts.tolist())))
    return tuple(histograms)


def _histogram(name: str, values: np.ndarray, bins: int, span: tuple[float, float] | None = None) -> Histogram:
    counts, edges = np.histogram(values.astype(np.float64), bins=bins, range=span)
    return Histogram(name, tuple(edges.tolist()), tuple(counts.tolist()))


def robust_scores(values: np.ndarray) -> np.ndarray:
    """Modified z-scores `0.6745 (x - median) / MAD` (Iglewicz and Hoaglin 1993).

    Where more than half of the values are equal the MAD is 0, and the mean absolute deviation takes its place with
    the factor 0.7979; where all are equal every score is 0.
    """
    deviation = values - np.median(values)
    mad, mean = np.median(np.abs(deviation)), np.mean(np.abs(deviation))
    scale = mad / 0.6745 if mad > 0 else mean / 0.7979
    return deviation / scale if scale > 0 else np.zeros_like(deviation)
