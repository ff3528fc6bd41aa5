"""Numbers into claims: estimates with intervals, sample efficiency, comparison of arms, distribution shift.

The estimates every evaluation needs are re-exported here; the rest is imported from its module: `efficiency` (timesteps
to target, ratios, bill), `aggregate` (interquartile mean, probability of improvement, profile), `comparison` (the
verdict), `planning` (how many more seeds), `shift` (are these two sets of observations alike), `snqi`.
"""

from pipeline.statistics.estimate import (
    Estimate,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_quantiles,
    column_means,
    wilson_interval,
)

__all__ = [
    "Estimate", "bootstrap_mean", "bootstrap_means", "bootstrap_quantiles", "column_means", "wilson_interval",
]  # fmt: skip
