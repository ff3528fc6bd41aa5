"""Aggregates over runs: interquartile mean, probability of improvement, performance profile.

After Agarwal et al. 2021, *Deep RL at the edge of the statistical precipice*. Scores are (runs, strata): one row a
seed, one column a stratum (a scenario set, or just one). Intervals resample seeds within each stratum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import trim_mean

from pipeline.statistics.efficiency import RESAMPLES
from pipeline.statistics.estimate import Estimate, percentile_interval, resample_indices, resample_weights


@dataclass(frozen=True)
class Profile:
    """Share of runs whose score is above a threshold, as a curve with pointwise 95 % intervals."""

    thresholds: tuple[float, ...]  # in the unit of the score
    share: tuple[float, ...]  # of runs with score > threshold
    low: tuple[float, ...]
    high: tuple[float, ...]


def interquartile_mean(scores: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of the middle half, floor(n / 4) values cut from each end: 0 1 2 3 4 5 6 100 -> 3.5."""
    drawn = [s[resample_indices(len(s), resamples, stratum_seed)] for s, stratum_seed in _strata(scores, seed)]
    resampled = trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    return percentile_interval(float(trim_mean(np.ravel(scores), 0.25)), resampled)


def probability_of_improvement(
    better: np.ndarray, worse: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """P(a run of `better` scores above a run of `worse`), ties counting one half; mean over strata.

    (runs_a,) or (runs_a, strata) against (runs_b,) or (runs_b, strata); higher scores win. It is the Mann-Whitney U
    divided by runs_a * runs_b. Runs against themselves give 0.5.
    """
    sides = _strata(better, seed), _strata(worse, seed)
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"both sides need the same strata, got {len(sides[0])} and {len(sides[1])}")
    values, resampled = [], np.zeros(resamples)
    for (a, stratum_seed), (b, _) in zip(*sides, strict=True):
        wins = (a[:, None] > b).astype(np.float64) + 0.5 * (a[:, None] == b)  # (runs_a, runs_b)
        values.append(wins.mean())
        # the two sides of a bilinear form: shares of each run in a resample, times who wins
        of_a = resample_weights(len(a), resamples, stratum_seed)
        of_b = resample_weights(len(b), resamples, stratum_seed + 1)
        resampled += np.einsum("ri,ij,rj->r", of_a, wins, of_b, optimize=True) / len(sides[0])
    return percentile_interval(float(np.mean(values)), resampled)


def performance_profile(
    scores: np.ndarray, thresholds: Sequence[float] | np.ndarray, seed: int, resamples: int = 2_000
) -> Profile:
    """Share of runs with score above each threshold: scores 1 2 3, thresholds 0 1.5 3 -> 1, 2/3, 0."""
    at, strata = np.asarray(thresholds, dtype=np.float64), _strata(scores, seed)
    share, resampled = np.zeros(len(at)), np.zeros((resamples, len(at)))
    for column, stratum_seed in strata:
        above = (column[:, None] > at).astype(np.float64)  # (runs, thresholds)
        share += above.mean(axis=0) / len(strata)
        resampled += resample_weights(len(column), resamples, stratum_seed) @ above / len(strata)
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return Profile(*(tuple(float(v) for v in values) for values in (at, share, low, high)))


def _strata(scores: np.ndarray, seed: int) -> list[tuple[np.ndarray, int]]:
    """Scores (runs,) or (runs, strata) as columns (runs,), each with a seed of its own to be resampled with.

    Raises ValueError for no runs or a score that is not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    table = table.reshape(-1, 1) if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"scores must be finite and shaped (runs,) or (runs, strata), got shape {table.shape}")
    seeds = np.random.SeedSequence(seed).generate_state(2 * table.shape[1])[::2]
    return [(column, int(stratum_seed)) for column, stratum_seed in zip(table.T, seeds, strict=True)]
