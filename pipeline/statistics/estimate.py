"""A figure with its confidence interval, for what one policy does: mean, quantiles, rates over episodes.

Percentile bootstrap (Efron and Tibshirani 1993, chapter 13) and the Wilson score interval (Wilson 1927).
Comparisons of arms resample seeds, never episodes: they live in `efficiency` and `aggregate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np

RESAMPLES = 1_000


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its confidence interval, all in the unit of the figure."""

    value: float
    low: float
    high: float


def bootstrap_mean(
    values: np.ndarray | Sequence[float], seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Estimate:
    """Mean of `values` (n,) with a percentile bootstrap interval: `[0, 1, 1, 1]` -> value 0.75.

    A NaN among the values makes all three figures NaN. Raises ValueError for no values.
    """
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    return bootstrap_means(column, seed, resamples, confidence)[0]


def bootstrap_means(
    values: np.ndarray, seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[Estimate, ...]:
    """Means of the columns of `values` (n, columns), all from the same resamples of the rows."""
    values = np.asarray(values, dtype=np.float64)
    _check(values.shape[0], resamples, confidence)
    # subtle: relative to the first row, so that a constant column gives an interval of exactly its value
    first = values[0]
    means = column_means(values)
    resampled = first + _resample_weights(values.shape[0], resamples, seed) @ (values - first)
    low, high = np.quantile(resampled, _tails(confidence), axis=0)
    return tuple(Estimate(float(m), float(a), float(b)) for m, a, b in zip(means, low, high, strict=True))


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
    _check(ordered.size, resamples, confidence)
    if np.isnan(ordered).any():
        return tuple(Estimate(np.nan, np.nan, np.nan) for _ in quantiles)
    # subtle: resampled ranks are sorted once for all figures; looking ordered values up in them keeps them ordered
    ranks = _resample_ranks(ordered.size, resamples, seed)
    return tuple(_quantile_estimate(ordered, ranks, q, confidence) for q in quantiles)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Score interval of a rate: 10 of 10 -> value 1.0, low 0.722, high 1.0 (Wilson 1927).

    Unlike the bootstrap it does not shrink to a point when every episode ends alike, so that a rule which asks for
    confidence can use it. Raises ValueError unless 0 <= successes <= trials and trials >= 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"need 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Estimate(rate, low, high)


def _check(count: int, resamples: int, confidence: float) -> None:
    if count < 1:
        raise ValueError("an interval needs at least one value, got none")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"need resamples >= 1 and 0 < confidence < 1, got {resamples} and {confidence}")


def _tails(confidence: float) -> tuple[float, float]:
    """`0.95` -> `(0.025, 0.975)`."""
    return (1 - confidence) / 2, (1 + confidence) / 2


def _quantile_estimate(ordered: np.ndarray, ranks: np.ndarray, q: float, confidence: float) -> Estimate:
    position = (ordered.size - 1) * q
    below = int(position)
    above = min(below + 1, ordered.size - 1)
    share = position - below
    resampled = (1 - share) * ordered[ranks[:, below]] + share * ordered[ranks[:, above]]
    low, high = np.quantile(resampled, _tails(confidence))
    return Estimate(float(np.quantile(ordered, q)), float(low), float(high))


def resample_indices(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) int32: rows of indices drawn with replacement; the same for the same arguments."""
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count), dtype=np.int32)


@lru_cache(maxsize=4)
def _resample_ranks(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) int32, every row sorted."""
    ranks = np.sort(resample_indices(count, resamples, seed), axis=1)
    ranks.setflags(write=False)
    return ranks


@lru_cache(maxsize=4)
def _resample_weights(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) float64: the share of every index in every resample; rows sum to 1."""
    indices = resample_indices(count, resamples, seed) + count * np.arange(resamples)[:, None]
    weights = np.bincount(indices.ravel(), minlength=count * resamples).reshape(resamples, count) / count
    weights.setflags(write=False)
    return weights
