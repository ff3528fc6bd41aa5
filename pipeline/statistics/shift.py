"""Are two sets of observations alike: the demonstrations' and those of fine-tuning rollouts.

Measure, per feature: the Kolmogorov-Smirnov distance, the largest difference between the two cumulative distributions,
from 0 (alike) to 1 (disjoint), over pooled quantile bins. Overall: the mean of it over all features and over fixed
random projections of the standardised features, which see shifts that lie in correlations alone (a sliced distance).

The overall p-value weighs the mean and the largest of these distances. P-values come from permuting whole episodes,
because steps of one episode resemble each other: permuting steps would cry wolf on every pair of recordings. Features
are corrected for their number by the distribution of the largest distance (Westfall and Young 1993).

Where both sides hold the same scenarios in the same shares, episodes are permuted within scenarios: the shares then add
no noise, and a small shift is found with fewer episodes. Otherwise all are permuted together, and a different mixture
of scenarios counts as a shift.

The measure answers "are these observations distributed alike", whatever the cause. To learn about scenarios alone, let
one policy play both; rollouts of another policy than the demonstrator differ by the policy as well.

    shift = measure_shift(dataset_episodes, rollout_episodes, names)
    shift.distance, shift.p_value, shift.shifted
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 64
PROJECTIONS = 32
PERMUTATIONS = 500
SHIFT_SIGNIFICANCE = 0.01
MOST_STEPS_PER_EPISODE = 64  # evenly spaced ones of longer episodes: neighbours say little new
SAME_SHARE = 0.02  # scenario shares that differ by less are the same: rounding to whole episodes
MOST_FEATURES = 256  # beyond (pictures), projections alone are measured


@dataclass(frozen=True)
class FeatureShift:
    """One feature of the observation."""

    name: str
    distance: float  # Kolmogorov-Smirnov, 0 to 1
    p_value: float  # corrected for the number of features
    mean_difference: float  # other - reference, in the feature's unit
    standardised_difference: float  # the same in pooled standard deviations


@dataclass(frozen=True)
class Shift:
    """The two-sample measure with its permutation p-values."""

    distance: float  # mean Kolmogorov-Smirnov distance over features and projections, 0 to 1
    expected_distance: float  # its mean over permutations: what two samples of this size differ by when alike
    p_value: float
    shifted: bool  # p_value <= significance
    significance: float
    features: tuple[FeatureShift, ...]  # largest distance first
    reference_episodes: int
    other_episodes: int
    permutations: int


def measure_shift(
    reference: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    names: Sequence[str] | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    significance: float = SHIFT_SIGNIFICANCE,
    scenarios: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Shift:
    """Compare episodes' observations: each side is a sequence of (T_i, *obs_shape) arrays, one an episode.

    `names` are those of the flattened features (default `observation[0]`, ...); `scenarios` the scenario of each
    reference episode and of each other episode. Raises ValueError for fewer than two episodes a side, an empty episode,
    unequal shapes, values that are not finite or a wrong number of names or scenarios.
    """
    if min(len(reference), len(other)) < 2:
        raise ValueError(f"need at least two episodes a side, got {len(reference)} and {len(other)}")
    steps = [_spread(np.asarray(episode)) for episode in (*reference, *other)]
    if len({episode.shape[1] for episode in steps}) != 1:
        raise ValueError("the observations of the two sides have different shapes")
    pooled = np.concatenate(steps)  # (S, features)
    if not np.isfinite(pooled).all():
        raise ValueError("observations must be finite")
    episode_of_step = np.repeat(np.arange(len(steps)), [len(episode) for episode in steps])  # (S,)
    feature_count = pooled.shape[1]
    labels = [f"observation[{i}]" for i in range(feature_count)] if names is None else list(names)
    if len(labels) != feature_count:
        raise ValueError(f"{len(labels)} names for {feature_count} features")

    # columns: features, and standardised features along random directions
    generator = np.random.default_rng(seed)
    measured = feature_count if feature_count <= MOST_FEATURES else 0
    scale = pooled.std(axis=0)
    standardised = (pooled - pooled.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    projected = standardised @ generator.normal(size=(feature_count, PROJECTIONS))
    columns = np.concatenate([pooled[:, :measured], projected], axis=1)

    # steps of each episode in each pooled quantile bin of each column
    counts = np.empty((len(steps), columns.shape[1], BINS), dtype=np.float32)
    quantiles = np.linspace(0, 1, BINS + 1)[1:-1]
    for index, column in enumerate(columns.T):
        bins = np.searchsorted(np.quantile(column, quantiles), column, side="left")
        flat = np.bincount(episode_of_step * BINS + bins, minlength=len(steps) * BINS)
        counts[:, index] = flat.reshape(len(steps), BINS)

    # splits of the episodes, 1 for the reference side: the observed one, then permutations within strata
    strata = _strata(len(reference), len(steps), scenarios)
    observed = (np.arange(len(steps)) < len(reference)).astype(np.float32)
    shuffled = np.tile(observed, (permutations, 1))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        shuffled[:, inside] = generator.permuted(shuffled[:, inside], axis=1)
    members = np.concatenate([observed[None], shuffled])

    # (splits, columns) Kolmogorov-Smirnov distances
    cumulative = counts.cumsum(axis=2).reshape(len(steps), -1)
    of_reference = (members @ cumulative).reshape(len(members), -1, BINS)
    of_other = cumulative.sum(axis=0).reshape(-1, BINS) - of_reference
    difference = of_reference / of_reference[:, :, -1:] - of_other / of_other[:, :, -1:]
    distances = np.abs(difference).max(axis=2)

    # evidence: the mean or the largest distance of a split, whichever is more unusual among the splits. The mean sees a
    # small change everywhere, the largest a change in one feature. Observed and permuted splits are treated alike, so
    # the permutation p-value of the combination is exact.
    overall = distances.mean(axis=1)
    candidates = np.stack([overall, distances.max(axis=1)], axis=1)
    deviation = candidates.std(axis=0)
    evidence = ((candidates - candidates.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)).max(axis=1)
    p_value = float((evidence >= evidence[0] - 1e-9).mean())

    features, largest = [], distances[1:, :measured].max(axis=1, initial=0.0)
    for index, name in enumerate(labels[:measured]):
        mine, theirs = pooled[episode_of_step < len(reference), index], pooled[episode_of_step >= len(reference), index]
        mean_difference, spread = float(theirs.mean() - mine.mean()), float(pooled[:, index].std())
        distance = float(distances[0, index])
        corrected = float((np.append(largest, np.inf) >= distance - 1e-12).mean())
        standardised_difference = mean_difference / spread if spread > 0 else 0.0
        features.append(FeatureShift(name, distance, corrected, mean_difference, standardised_difference))
    return Shift(
        distance=float(overall[0]),
        expected_distance=float(overall[1:].mean()),
        p_value=p_value,
        shifted=p_value <= significance,
        significance=significance,
        features=tuple(sorted(features, key=lambda feature: -feature.distance)),
        reference_episodes=len(reference),
        other_episodes=len(other),
        permutations=permutations,
    )


def _spread(episode: np.ndarray) -> np.ndarray:
    """(T, *shape) -> (t, features) float64 of at most `MOST_STEPS_PER_EPISODE` evenly spaced steps."""
    if episode.ndim < 1 or len(episode) == 0:
        raise ValueError("an episode without observations cannot be compared")
    chosen = np.unique(np.linspace(0, len(episode) - 1, min(len(episode), MOST_STEPS_PER_EPISODE)).round().astype(int))
    return episode[chosen].reshape(len(chosen), -1).astype(np.float64)


def _strata(reference: int, episodes: int, scenarios: tuple[Sequence[str], Sequence[str]] | None) -> np.ndarray:
    """(episodes,) int: episodes of equal number may change sides."""
    together = np.zeros(episodes, dtype=np.int64)
    if scenarios is None:
        return together
    if (len(scenarios[0]), len(scenarios[1])) != (reference, episodes - reference):
        raise ValueError(f"{len(scenarios[0])} and {len(scenarios[1])} scenarios for the episodes of the two sides")
    names, numbers = np.unique([*scenarios[0], *scenarios[1]], return_inverse=True)
    sides = numbers[:reference], numbers[reference:]
    shares = np.array([np.bincount(side, minlength=len(names)) / len(side) for side in sides])
    same = np.abs(shares[0] - shares[1]).max() <= SAME_SHARE and shares.min() > 0
    return numbers if same else together
