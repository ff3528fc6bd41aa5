"""SNQI, the social navigation quality index: weights and baseline files, the index itself, and the fit of a baseline.

SNQI = w_success success - w_time time_norm - w_collisions N(collision) - w_near N(near_misses)
       - w_comfort comfort_exposure - w_force_exceed N(force_exceed_events) - w_jerk N(jerk_mean)
N(x) = clip((x - med) / (p95 - med), 0, 1)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.config.base import NonNegative, configuration
from pipeline.config.loading import parse_json, read_text, validate
from pipeline.errors import BadInput

# Key in the weights file -> episode metric it weighs.
TERMS = {
    "success": "success",
    "time": "time_norm",
    "collisions": "collision",
    "near": "near_misses",
    "comfort": "comfort_exposure",
    "force_exceed": "force_exceed_events",
    "jerk": "jerk_mean",
}
NORMALISED = ("collision", "near_misses", "force_exceed_events", "jerk_mean")  # metrics that need a baseline


@configuration
class Quantiles:
    """Where a metric lies in the baseline episodes."""

    med: float  # median, in the unit of the metric
    p95: float  # 95th percentile, same unit; above the median

    def __post_init__(self) -> None:
        if not self.p95 > self.med:
            raise ValueError(f"p95 is {self.p95}, which must exceed med ({self.med}); fit the file again")


@configuration
class _WeightsFile:
    success: NonNegative
    time: NonNegative
    collisions: NonNegative
    near: NonNegative
    comfort: NonNegative
    force_exceed: NonNegative
    jerk: NonNegative


@configuration
class _BaselineFile:
    collision: Quantiles
    near_misses: Quantiles
    force_exceed_events: Quantiles
    jerk_mean: Quantiles


Weights = Mapping[str, float]  # keys of TERMS
Baseline = Mapping[str, Quantiles]  # keys of NORMALISED
F = TypeVar("F")


def load_weights(path: Path) -> dict[str, float]:
    """The weights file: `{"success": 1.0, "time": 0.8, ...}`, all keys of `TERMS`, finite and >= 0. Raises BadInput."""
    return asdict(_read(_WeightsFile, path))


def load_baseline(path: Path) -> dict[str, Quantiles]:
    """The baseline file: `{"near_misses": {"med": 2.0, "p95": 20.0}, ...}`, all of `NORMALISED`. Raises BadInput."""
    return dict(vars(_read(_BaselineFile, path)))


def _read(cls: type[F], path: Path) -> F:
    source = f"SNQI file {str(path)!r}"
    return validate(cls, parse_json(read_text(path, "SNQI file"), source), source)


def snqi(metrics: Mapping[str, np.ndarray], weights: Weights, baseline: Baseline) -> np.ndarray:
    """Episode metrics, each (n,), -> the index of every episode (n,). Raises BadInput when a metric is missing."""
    for metric in TERMS.values():
        if metric not in metrics:
            raise BadInput(f"SNQI needs the episode metric {metric!r}, which these episodes do not have.")
    total = weights["success"] * np.asarray(metrics["success"], dtype=np.float64)
    for key, metric in list(TERMS.items())[1:]:
        value = np.asarray(metrics[metric], dtype=np.float64)
        if metric in NORMALISED:
            med, p95 = baseline[metric].med, baseline[metric].p95
            value = np.clip((value - med) / (p95 - med), 0.0, 1.0)
        total = total - weights[key] * value
    return total


def fit_baseline(metrics: Mapping[str, np.ndarray]) -> dict[str, Quantiles]:
    """Medians and 95th percentiles of recorded episodes; each metric (n,). Raises BadInput where there is no spread.

    A collision is 0 or 1: its spread is fixed at 0 to 1, so that N(collision) is the collision itself.
    """
    baseline = {}
    for metric in NORMALISED:
        if metric not in metrics:
            raise BadInput(f"The episodes to fit the SNQI baseline from lack the metric {metric!r}. Record them again.")
        values = np.asarray(metrics[metric], dtype=np.float64)
        if values.size == 0 or not np.isfinite(values).all():
            raise BadInput(
                f"The metric {metric!r} has no values or some that are not finite; it needs finite episodes."
            )
        med, p95 = float(np.median(values)), float(np.percentile(values, 95))
        if metric == "collision":
            med, p95 = 0.0, 1.0
        if not p95 > med:
            raise BadInput(
                f"The metric {metric!r} has no spread (median {med}, 95th percentile {p95}) in {values.size} episodes. "
                "Record more, or more varied ones."
            )
        baseline[metric] = Quantiles(med=med, p95=p95)
    return baseline


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline file that `load_baseline` reads back as the same numbers."""
    content = {metric: asdict(baseline[metric]) for metric in NORMALISED}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
