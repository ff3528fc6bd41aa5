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
SIGNIFICANCE = 0.01
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
    significance: float = SIGNIFICANCE,
    scenarios: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Shift:
    """Compare episodes' observations: each side is a sequence of (T_i, *obs_shape) arrays, one an episode.

    `names` are those of the flattened features (default `observation[0]`, ...); `scenarios` the scenario of each
    reference episode and of each other episode. Raises ValueError for fewer than two episodes a side, an empty episode,
    unequal shapes, values that are not finite or a wrong number of names or scenarios.
    """
    steps = [_spread(np.asarray(episode)) for episode in (*reference, *other)]
    pooled, episode_of_step = _pool(steps, len(reference), len(other))
    feature_count = pooled.shape[1]
    labels = [f"observation[{i}]" for i in range(feature_count)] if names is None else list(names)
    if len(labels) != feature_count:
        raise ValueError(f"{len(labels)} names for {feature_count} features")
    generator = np.random.default_rng(seed)
    measured = feature_count if feature_count <= MOST_FEATURES else 0
    columns = np.concatenate([pooled[:, :measured], _projections(pooled, generator)], axis=1)
    counts = _binned(columns, episode_of_step, len(steps))  # (episodes, columns, bins)
    strata = _strata(len(reference), len(steps), scenarios)
    members = _memberships(len(reference), strata, permutations, generator)
    distances = _distances(counts, members)  # (1 + permutations, columns), the first is the observed one
    overall, evidence = distances.mean(axis=1), _evidence(distances)
    p_value = float((evidence >= evidence[0] - 1e-9).mean())
    shifts = _feature_shifts(labels[:measured], pooled, distances[:, :measured], episode_of_step < len(reference))
    return Shift(
        distance=float(overall[0]),
        expected_distance=float(overall[1:].mean()),
        p_value=p_value,
        shifted=p_value <= significance,
        significance=significance,
        features=tuple(sorted(shifts, key=lambda feature: -feature.distance)),
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


def _pool(steps: Sequence[np.ndarray], reference: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """All steps (S, features), and the number of the episode each is of (S,)."""
    if min(reference, other) < 2:
        raise ValueError(f"need at least two episodes a side, got {reference} and {other}")
    if len({episode.shape[1] for episode in steps}) != 1:
        raise ValueError("the observations of the two sides have different shapes")
    pooled = np.concatenate(steps)
    if not np.isfinite(pooled).all():
        raise ValueError("observations must be finite")
    return pooled, np.repeat(np.arange(len(steps)), [len(episode) for episode in steps])


def _projections(pooled: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(S, PROJECTIONS): standardised features along random directions."""
    spread = pooled.std(axis=0)
    standardised = (pooled - pooled.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    projected: np.ndarray = standardised @ generator.normal(size=(pooled.shape[1], PROJECTIONS))
    return projected


def _binned(columns: np.ndarray, episode_of_step: np.ndarray, episodes: int) -> np.ndarray:
    """(episodes, columns, BINS) float32: steps of each episode in each pooled quantile bin of each column."""
    counts = np.empty((episodes, columns.shape[1], BINS), dtype=np.float32)
    quantiles = np.linspace(0, 1, BINS + 1)[1:-1]
    for index, column in enumerate(columns.T):
        bins = np.searchsorted(np.quantile(column, quantiles), column, side="left")
        flat = np.bincount(episode_of_step * BINS + bins, minlength=episodes * BINS)
        counts[:, index] = flat.reshape(episodes, BINS)
    return counts


def _strata(reference: int, episodes: int, scenarios: tuple[Sequence[str], Sequence[str]] | None) -> np.ndarray:
    """(episodes,) int: episodes of equal number may change sides."""
    together = np.zeros(episodes, dtype=np.int64)
    if scenarios is None:
        return together
    if (len(scenarios[0]), len(scenarios[1])) != (reference, episodes - reference):
        raise ValueError(f"{len(scenarios[0])} and {len(scenarios[1])} scenarios for the episodes of the two sides")
    names, numbers = np.unique([*scenarios[0], *scenarios[1]], return_inverse=True)
    shares = [
        np.bincount(part, minlength=len(names)) / len(part) for part in (numbers[:reference], numbers[reference:])
    ]
    if np.abs(shares[0] - shares[1]).max() > SAME_SHARE or min(share.min() for share in shares) == 0:
        return together
    return numbers


def _memberships(reference: int, strata: np.ndarray, permutations: int, generator: np.random.Generator) -> np.ndarray:
    """(1 + permutations, episodes) float32: 1 for the episodes of the reference side; row 0 is the observed split."""
    observed = (np.arange(len(strata)) < reference).astype(np.float32)
    shuffled = np.tile(observed, (permutations, 1))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        shuffled[:, inside] = generator.permuted(shuffled[:, inside], axis=1)
    return np.concatenate([observed[None], shuffled])


def _distances(counts: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(splits, columns) Kolmogorov-Smirnov distances of every split of the episodes."""
    episodes, columns, bins = counts.shape
    cumulative = counts.cumsum(axis=2).reshape(episodes, columns * bins)
    of_reference = (members @ cumulative).reshape(-1, columns, bins)
    of_other = cumulative.sum(axis=0).reshape(columns, bins) - of_reference
    difference = of_reference / of_reference[:, :, -1:] - of_other / of_other[:, :, -1:]
    distances: np.ndarray = np.abs(difference).max(axis=2)
    return distances


def _evidence(distances: np.ndarray) -> np.ndarray:
    """(splits,): the mean or the largest distance, whichever is more unusual among the splits.

    The mean sees a small change everywhere, the largest a change in one feature. Observed and permuted splits are
    treated alike, so the permutation p-value of the combination is exact.
    """
    candidates = np.stack([distances.mean(axis=1), distances.max(axis=1)], axis=1)
    spread = candidates.std(axis=0)
    unusual: np.ndarray = ((candidates - candidates.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)).max(axis=1)
    return unusual


def _feature_shifts(
    names: Sequence[str], pooled: np.ndarray, distances: np.ndarray, is_reference: np.ndarray
) -> list[FeatureShift]:
    if not names:
        return []
    largest = distances.max(axis=1)
    found = []
    for index, name in enumerate(names):
        column = pooled[:, index]
        difference = float(column[~is_reference].mean() - column[is_reference].mean())
        spread = float(column.std())
        distance = float(distances[0, index])
        p_value = float((np.append(largest[1:], np.inf) >= distance - 1e-12).mean())
        found.append(FeatureShift(name, distance, p_value, difference, difference / spread if spread > 0 else 0.0))
    return found
