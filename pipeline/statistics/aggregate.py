"""Aggregates over runs: interquartile mean, probability of improvement, performance profile.

After Agarwal et al. 2021, *Deep RL at the edge of the statistical precipice*. Scores are (runs, strata): one row a
seed, one column a stratum (a scenario set, or just one). Intervals resample seeds within each stratum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.statistics.efficiency import RESAMPLES, percentile_interval
from pipeline.statistics.estimate import Estimate, resample_indices


@dataclass(frozen=True)
class Profile:
    """Share of runs whose score is above a threshold, as a curve with pointwise 95 % intervals."""

    thresholds: tuple[float, ...]  # in the unit of the score
    share: tuple[float, ...]  # of runs with score > threshold
    low: tuple[float, ...]
    high: tuple[float, ...]


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis: 0 1 2 3 4 5 6 100 -> 3.5.

    Cuts floor(n / 4) values from each end, as `scipy.stats.trim_mean(scores, 0.25)` does.
    """
    ordered = np.sort(scores, axis=-1)
    cut = ordered.shape[-1] // 4
    middle: np.ndarray = ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)
    return middle


def interquartile_mean_estimate(scores: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Interquartile mean of `scores` (runs,) or (runs, strata) with a stratified bootstrap interval over runs."""
    table = as_table(scores)
    return percentile_interval(
        float(interquartile_mean(table.ravel())),
        stratified_bootstrap(table, lambda x: interquartile_mean(x.reshape(len(x), -1)), seed, resamples),
    )


def stratified_bootstrap(
    scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """(resamples,) values of `statistic`, which maps (resamples, runs, strata) to (resamples,).

    Runs are drawn with replacement, independently in each stratum.
    """
    table = as_table(scores)
    columns = [
        column[resample_indices(len(column), resamples, stratum_seed)]
        for column, stratum_seed in zip(table.T, _seeds(seed, table.shape[1]), strict=True)
    ]
    return statistic(np.stack(columns, axis=2))


def probability_of_improvement(
    better: np.ndarray, worse: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """P(a run of `better` scores above a run of `worse`), ties counting one half; mean over strata.

    (runs_a,) or (runs_a, strata) against (runs_b,) or (runs_b, strata); higher scores win. It is the Mann-Whitney U
    divided by runs_a * runs_b. Runs against themselves give 0.5.
    """
    a, b = as_table(better), as_table(worse)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sides need the same strata, got {a.shape[1]} and {b.shape[1]}")
    value = float(np.mean([_wins(x, y).mean() for x, y in zip(a.T, b.T, strict=True)]))
    resampled = np.zeros(resamples)
    for x, y, stratum_seed in zip(a.T, b.T, _seeds(seed, a.shape[1]), strict=True):
        # the two sides of a bilinear form: counts of each run in a resample, times who wins
        weights_x = _weights(len(x), resamples, stratum_seed)
        weights_y = _weights(len(y), resamples, stratum_seed + 1)
        resampled += np.einsum("ri,ij,rj->r", weights_x, _wins(x, y), weights_y, optimize=True) / a.shape[1]
    return percentile_interval(value, resampled)


def performance_profile(
    scores: np.ndarray, thresholds: Sequence[float] | np.ndarray, seed: int, resamples: int = 2_000
) -> Profile:
    """Share of runs with score above each threshold: scores 1 2 3, thresholds 0 1.5 3 -> 1, 2/3, 0."""
    table = as_table(scores)
    at = np.asarray(thresholds, dtype=np.float64)
    above = (table[:, :, None] > at).astype(np.float64)  # (runs, strata, thresholds)
    resampled = np.zeros((resamples, len(at)))
    for stratum, stratum_seed in enumerate(_seeds(seed, table.shape[1])):
        resampled += _weights(len(table), resamples, stratum_seed) @ above[:, stratum] / table.shape[1]
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    share = above.mean(axis=(0, 1))
    return Profile(*(tuple(float(v) for v in values) for values in (at, share, low, high)))


def as_table(scores: np.ndarray | Sequence[float]) -> np.ndarray:
    """(runs,) -> (runs, 1) float64. Raises ValueError for no runs or a score that is not finite."""
    table = np.asarray(scores, dtype=np.float64)
    table = table.reshape(-1, 1) if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"scores must be finite and shaped (runs,) or (runs, strata), got shape {table.shape}")
    return table


def _seeds(seed: int, strata: int) -> list[int]:
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(2 * strata)[::2]]


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(runs_a, runs_b): 1 where a run of `a` is above one of `b`, one half at a tie."""
    return (a[:, None] > b).astype(np.float64) + 0.5 * (a[:, None] == b)


def _weights(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count): share of each run in each resample."""
    indices = resample_indices(count, resamples, seed) + count * np.arange(resamples)[:, None]
    return np.bincount(indices.ravel(), minlength=count * resamples).reshape(resamples, count) / count
