"""Looks at a dataset: statistics per feature, actions, returns and lengths, outcomes by scenario, and what stands out.

Nothing here judges (that is `validate`) or draws (that is `pipeline.report`): it turns a dataset into numbers.
"""

import json
from dataclasses import asdict, dataclass

import numpy as np
from gymnasium import spaces

from pipeline.data import DatasetMetadata, Trajectories
from pipeline.data.observations import flat_rows
from pipeline.data.spaces import space_bounds, space_from_json
from pipeline.errors import BadInput
from pipeline.names import Metric
from pipeline.validation.facts import chunks

OUTLIER_SCORE = 3.5  # Iglewicz and Hoaglin (1993), *How to detect and handle outliers*
ACTION_BINS = 20
DISTRIBUTION_BINS = 20
CHUNK_NUMBERS = 1 << 20  # converted to float64 at a time, of observations that may be images
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

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)


def inspect_dataset(trajectories: Trajectories, metadata: DatasetMetadata) -> Inspection:
    """Statistics and outliers of a sound dataset. Raises BadInput for one without episodes or with NaN in it."""
    if not trajectories.steps:
        raise BadInput("the dataset holds no episode; there is nothing to inspect")
    figures = {
        Metric.RETURN: trajectories.metrics.get(Metric.RETURN, _returns(trajectories)),
        Metric.LENGTH: trajectories.lengths.astype(np.float64),
        "action_jerk": action_jerk(trajectories, space_from_json(metadata.action_space)),
    }
    others = {name: values for name, values in trajectories.metrics.items() if name not in figures}
    for name, values in {**figures, **others}.items():
        if not np.isfinite(values).all():
            raise BadInput(f"metric {name} holds a value that is not finite; validate the dataset first")
    return Inspection(
        dataset_id=metadata.dataset_id,
        origin=metadata.origin,
        episodes=len(trajectories),
        steps=trajectories.steps,
        features=_features(trajectories.observations, space_from_json(metadata.observation_space)),
        actions=_action_histograms(trajectories.actions, space_from_json(metadata.action_space)),
        distributions=tuple(_distribution(name, values) for name, values in {**figures, **others}.items()),
        scenarios=_scenarios(trajectories, {**figures, **others}),
        outliers=_outliers(trajectories, figures),
    )


def _returns(trajectories: Trajectories) -> np.ndarray:
    return np.add.reduceat(trajectories.rewards.astype(np.float64), trajectories.step_offsets[:-1])


def action_jerk(trajectories: Trajectories, space: spaces.Space) -> np.ndarray:
    """(N,) mean norm of the second difference of the labels, in half ranges of the action space per step squared.

    For discrete actions: the share of steps at which the action changes.
    """
    actions, lengths = flat_rows(trajectories.actions), trajectories.lengths
    if actions.dtype.kind != "f":
        changed = (actions[1:] != actions[:-1]).any(axis=1).astype(np.float64)
        return _mean_within(changed, lengths, 1)
    low, high = space_bounds(space)
    half_range = (high.astype(np.float64) - low) / 2
    scaled = actions / np.where(np.isfinite(half_range) & (half_range > 0), half_range, 1.0)
    return _mean_within(np.linalg.norm(scaled[2:] - 2 * scaled[1:-1] + scaled[:-2], axis=1), lengths, 2)


def _mean_within(differences: np.ndarray, lengths: np.ndarray, order: int) -> np.ndarray:
    """Mean per episode of differences of an order over the flat steps, without those that span two episodes."""
    sums = np.concatenate([[0.0], np.cumsum(differences)])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    counts = np.maximum(0, lengths - order)
    first = np.minimum(starts, len(differences))
    total = sums[np.minimum(first + counts, len(differences))] - sums[first]
    return total / np.maximum(1, counts)


def _features(observations: np.ndarray, space: spaces.Space) -> tuple[FeatureStatistics, ...]:
    count, centre = len(observations), flat_rows(observations[:1])[0].astype(np.float64)
    total, squares = np.zeros(len(centre)), np.zeros(len(centre))  # around a typical value sums lose no digits
    low, high = centre.copy(), centre.copy()
    for part in chunks(count, max(1, CHUNK_NUMBERS // len(centre))):
        chunk = flat_rows(observations[part]).astype(np.float64)
        low, high = np.minimum(low, chunk.min(axis=0)), np.maximum(high, chunk.max(axis=0))
        chunk -= centre
        total += chunk.sum(axis=0)
        squares += (chunk**2).sum(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise BadInput("the observations hold a value that is not finite; validate the dataset first")
    mean = total / count
    std = np.sqrt(np.maximum(0.0, squares / count - mean**2))
    bounds = [np.broadcast_to(bound.astype(np.float64), mean.shape) for bound in space_bounds(space)]
    return tuple(
        FeatureStatistics(
            index=i,
            mean=float(centre[i] + mean[i]),
            std=float(std[i]),
            min=float(low[i]),
            max=float(high[i]),
            low=_finite(bounds[0][i]),
            high=_finite(bounds[1][i]),
            constant=bool(low[i] == high[i]),
        )
        for i in range(len(centre))
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _action_histograms(actions: np.ndarray, space: spaces.Space) -> tuple[Histogram, ...]:
    rows = flat_rows(actions)
    low, high = space_bounds(space)
    histograms = []
    for column in range(rows.shape[1]):
        values, name = rows[:, column], f"action[{column}]"
        if rows.dtype.kind == "f":
            ends = [_finite(low[column]), _finite(high[column])]
            span = (values.min() if ends[0] is None else ends[0], values.max() if ends[1] is None else ends[1])
            histograms.append(_histogram(name, values, ACTION_BINS, (float(span[0]), float(span[1]))))
        else:
            first = int(low[column])
            counts = np.bincount(values.astype(np.int64) - first, minlength=int(high[column]) - first + 1)
            edges = tuple(float(first + k) for k in range(len(counts)))
            histograms.append(Histogram(name, edges, tuple(int(c) for c in counts)))
    return tuple(histograms)


def _histogram(name: str, values: np.ndarray, bins: int, span: tuple[float, float] | None = None) -> Histogram:
    counts, edges = np.histogram(values.astype(np.float64), bins=bins, range=span)
    return Histogram(name, tuple(float(e) for e in edges), tuple(int(c) for c in counts))


def _distribution(name: str, values: np.ndarray) -> Distribution:
    return Distribution(
        name=name,
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        max=float(values.max()),
        percentiles={str(p): float(v) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)},
        histogram=_histogram(name, values, DISTRIBUTION_BINS),
    )


def _scenarios(trajectories: Trajectories, figures: dict[str, np.ndarray]) -> tuple[ScenarioOutcome, ...]:
    outcomes = []
    for scenario in np.unique(trajectories.scenarios):
        chosen = trajectories.scenarios == scenario
        means = {name: float(values[chosen].mean()) for name, values in figures.items()}
        outcomes.append(ScenarioOutcome(str(scenario), int(chosen.sum()), means))
    return tuple(outcomes)


def robust_scores(values: np.ndarray) -> np.ndarray:
    """Modified z-scores `0.6745 (x - median) / MAD` (Iglewicz and Hoaglin 1993).

    Where more than half of the values are equal the MAD is 0, and the mean absolute deviation takes its place with
    the factor 0.7979; where all are equal every score is 0.
    """
    deviation = values - np.median(values)
    mad, mean = np.median(np.abs(deviation)), np.mean(np.abs(deviation))
    scale = mad / 0.6745 if mad > 0 else mean / 0.7979
    return deviation / scale if scale > 0 else np.zeros_like(deviation)


def _outliers(trajectories: Trajectories, figures: dict[str, np.ndarray]) -> tuple[Outlier, ...]:
    found = []
    for figure, values in figures.items():
        scores, median = robust_scores(values), float(np.median(values))
        for episode in np.flatnonzero(np.abs(scores) > OUTLIER_SCORE):
            side = "above" if values[episode] > median else "below"
            reason = (
                f"{figure} {values[episode]:.4g} is {abs(scores[episode]):.1f} robust standard deviations {side} "
                f"the median {median:.4g}"
            )
            found.append(
                Outlier(
                    episode=int(episode),
                    scenario=str(trajectories.scenarios[episode]),
                    seed=int(trajectories.seeds[episode]),
                    figure=figure,
                    value=float(values[episode]),
                    median=median,
                    score=float(scores[episode]),
                    reason=reason,
                )
            )
    return tuple(sorted(found, key=lambda outlier: -abs(outlier.score)))
