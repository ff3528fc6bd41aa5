"""A figure with its confidence interval: mean, quantiles and rates over episodes, any statistic over paired samples.

Percentile bootstrap (Efron and Tibshirani 1993, chapter 13) and the Wilson score interval (Wilson 1927).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 1_000


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its confidence interval, all in the unit of the figure."""

    value: float
    low: float
    high: float


def percentile_interval(value: float, resampled: np.ndarray, confidence: float = 0.95) -> Estimate:
    """A figure with the percentile interval of its resampled values (resamples,)."""
    low, high = np.quantile(resampled, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Estimate(value, float(low), float(high))


def bootstrap(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """`statistic(*samples, axis=-1)` of paired samples (n,), resampled together.

    As `scipy.stats.bootstrap(samples, statistic, paired=True, method="percentile")`, with a stream of its own that
    stays the same from version to version.
    """
    indices = resample_indices(len(samples[0]), resamples, seed)
    resampled = statistic(*(sample[indices] for sample in samples), axis=-1)
    return percentile_interval(float(statistic(*samples, axis=-1)), resampled)


def resample_indices(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) int32: rows of indices drawn with replacement; the same for the same arguments."""
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count), dtype=np.int32)


@lru_cache(maxsize=4)
def resample_weights(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) float64: the share of every index in every resample; rows sum to 1."""
    indices = resample_indices(count, resamples, seed) + count * np.arange(resamples)[:, None]
    weights = np.bincount(indices.ravel(), minlength=count * resamples).reshape(resamples, count) / count
    weights.setflags(write=False)
    return weights


def bootstrap_mean(
    values: np.ndarray | Sequence[float], seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Estimate:
    """Mean of `values` (n,) with a percentile bootstrap interval: `[0, 1, 1, 1]` -> value 0.75.

    A NaN among the values makes all three figures NaN. Raises ValueError for no values.
    """
    return bootstrap_means(np.reshape(values, (-1, 1)), seed, resamples, confidence)[0]


def bootstrap_means(
    values: np.ndarray, seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[Estimate, ...]:
    """Means of the columns of `values` (n, columns), all from the same resamples of the rows."""
    values = np.asarray(values, dtype=np.float64)
    _check(len(values), resamples, confidence)
    # subtle: relative to the first row, so that a constant column gives an interval of exactly its value
    first = values[0]
    resampled = first + resample_weights(len(values), resamples, seed) @ (values - first)
    means = column_means(values)
    return tuple(percentile_interval(float(m), r, confidence) for m, r in zip(means, resampled.T, strict=True))


def column_means(values: np.ndarray) -> np.ndarray:
    """(columns,) means of `values` (n, columns), n > 0, each the same to the last bit whatever stands beside it.

    As they are defined: 10 collisions in 200 episodes are exactly 0.05, and a rule may say <= 0.05.
    """
    columns = np.ascontiguousarray(np.asarray(values, dtype=np.float64).T)
    return np.where((columns[:, 0] == columns.T).all(axis=0), columns[:, 0], columns.mean(axis=1))


def bootstrap_quantiles(
    values: np.ndarray | Sequence[float],
    quantiles: Sequence[float],
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> tuple[Estimate, ...]:
    """Quantiles (`(0.5, 0.05, 0.95)`: median, p5, p95) of `values` (n,), each with a percentile bootstrap interval.

    Quantiles interpolate linearly, as numpy does by default. Raises ValueError for no values.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    _check(len(ordered), resamples, confidence)
    if np.isnan(ordered).any():
        return tuple(Estimate(np.nan, np.nan, np.nan) for _ in quantiles)
    # subtle: resampled ranks are sorted once for all figures; looking ordered values up in them keeps them ordered
    ranks = _resample_ranks(len(ordered), resamples, seed)
    found = []
    for q in quantiles:
        below, share = divmod((len(ordered) - 1) * q, 1)
        above = min(int(below) + 1, len(ordered) - 1)
        resampled = (1 - share) * ordered[ranks[:, int(below)]] + share * ordered[ranks[:, above]]
        found.append(percentile_interval(float(np.quantile(ordered, q)), resampled, confidence))
    return tuple(found)


@lru_cache(maxsize=4)
def _resample_ranks(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) int32, every row sorted."""
    ranks = np.sort(resample_indices(count, resamples, seed), axis=1)
    ranks.setflags(write=False)
    return ranks


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Score interval of a rate: 10 of 10 -> value 1.0, low 0.722, high 1.0 (Wilson 1927).

    Unlike the bootstrap it does not shrink to a point when every episode ends alike, so that a rule which asks for
    confidence can use it. Raises ValueError unless 0 <= successes <= trials and trials >= 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"need 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    low, high = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Estimate(successes / trials, float(low), float(high))


def _check(count: int, resamples: int, confidence: float) -> None:
    if count < 1:
        raise ValueError("an interval needs at least one value, got none")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"need resamples >= 1 and 0 < confidence < 1, got {resamples} and {confidence}")
