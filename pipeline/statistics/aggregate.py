"""Aggregates over runs: interquartile mean, probability of improvement, performance profile.

After Agarwal et al. 2021, *Deep RL at the edge of the statistical precipice*. Scores are (runs,), one a seed; intervals
resample seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import trim_mean

from pipeline.statistics.efficiency import RATIO_RESAMPLES
from pipeline.statistics.estimate import Estimate, bootstrap, percentile_interval, resample_weights


@dataclass(frozen=True)
class Profile:
    """Share of runs whose score is above a threshold, as a curve with pointwise 95 % intervals."""

    thresholds: tuple[float, ...]  # in the unit of the score
    share: tuple[float, ...]  # of runs with score > threshold
    low: tuple[float, ...]
    high: tuple[float, ...]


def interquartile_mean(scores: np.ndarray, seed: int, resamples: int = RATIO_RESAMPLES) -> Estimate:
    """Mean of the middle half, floor(n / 4) values cut from each end: 0 1 2 3 4 5 6 100 -> 3.5."""
    values, drawn_with = _checked(scores, seed)
    return bootstrap(partial(trim_mean, proportiontocut=0.25), values, seed=drawn_with, resamples=resamples)


def probability_of_improvement(
    better: np.ndarray, worse: np.ndarray, seed: int, resamples: int = RATIO_RESAMPLES
) -> Estimate:
    """P(a run of `better` (runs_a,) scores above a run of `worse` (runs_b,)), ties counting one half; higher wins.

    It is the Mann-Whitney U divided by runs_a * runs_b. Runs against themselves give 0.5. The two sides are resampled
    independently, also where their seeds are matched; a single run on a side says nothing of others: 0 to 1.
    """
    (a, drawn_with), (b, _) = _checked(better, seed), _checked(worse, seed)
    wins = (a[:, None] > b).astype(np.float64) + 0.5 * (a[:, None] == b)  # (runs_a, runs_b)
    if min(len(a), len(b)) < 2:
        return Estimate(float(wins.mean()), 0.0, 1.0)
    # the two sides of a bilinear form: shares of each run in a resample, times who wins
    of_a, of_b = resample_weights(len(a), resamples, drawn_with), resample_weights(len(b), resamples, drawn_with + 1)
    resampled = np.einsum("ri,ij,rj->r", of_a, wins, of_b, optimize=True)
    return percentile_interval(float(wins.mean()), resampled)


def performance_profile(
    scores: np.ndarray, thresholds: Sequence[float] | np.ndarray, seed: int, resamples: int = 2_000
) -> Profile:
    """Share of runs with score above each threshold: scores 1 2 3, thresholds 0 1.5 3 -> 1, 2/3, 0."""
    at, (values, drawn_with) = np.asarray(thresholds, dtype=np.float64), _checked(scores, seed)
    above = (values[:, None] > at).astype(np.float64)  # (runs, thresholds)
    resampled = resample_weights(len(values), resamples, drawn_with) @ above
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return Profile(*(tuple(figures.tolist()) for figures in (at, above.mean(axis=0), low, high)))


def _checked(scores: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Scores (runs,) float64 and the seed they are resampled with. Raises ValueError for none, or one not finite."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"scores must be finite and shaped (runs,), got shape {values.shape}")
    return values, int(np.random.SeedSequence(seed).generate_state(1)[0])
