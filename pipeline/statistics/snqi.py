"""SNQI, the social navigation quality index: weights and baseline files, the index itself, and the fit of a baseline.

SNQI = w_success success - w_time time_norm - w_collisions N(collision) - w_near N(near_misses)
       - w_comfort comfort_exposure - w_force_exceed N(force_exceed_events) - w_jerk N(jerk_mean)
N(x) = clip((x - med) / (p95 - med), 0, 1)
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.config.loading import parse_json, read_text
from pipeline.errors import BadInput, did_you_mean, shortened

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


@dataclass(frozen=True)
class Spread:
    """Where a metric lies in the baseline episodes."""

    med: float  # median, in the unit of the metric
    p95: float  # 95th percentile, same unit; above the median


Weights = Mapping[str, float]  # keys of TERMS
Baseline = Mapping[str, Spread]  # keys of NORMALISED


def load_weights(path: Path) -> dict[str, float]:
    """The weights file: `{"success": 1.0, "time": 0.8, ...}`, all keys of `TERMS`, finite and >= 0. Raises BadInput."""
    content = _read(path, tuple(TERMS))
    return {key: _number(content[key], key, path, least=0.0) for key in TERMS}


def load_baseline(path: Path) -> dict[str, Spread]:
    """The baseline file: `{"near_misses": {"med": 2.0, "p95": 20.0}, ...}`, all of `NORMALISED`. Raises BadInput."""
    content = _read(path, NORMALISED)
    baseline = {}
    for metric in NORMALISED:
        entry = content[metric]
        if not isinstance(entry, dict) or set(entry) != {"med", "p95"}:
            raise BadInput(f'{path}: {metric} is {shortened(entry)}; it must be {{"med": number, "p95": number}}.')
        med, p95 = (_number(entry[key], f"{metric}.{key}", path, least=-math.inf) for key in ("med", "p95"))
        if not p95 > med:
            raise BadInput(
                f"{path}: {metric}.p95 is {p95}, which must exceed {metric}.med ({med}). Fit the file again."
            )
        baseline[metric] = Spread(med, p95)
    return baseline


def _read(path: Path, keys: Sequence[str]) -> dict[str, object]:
    content = parse_json(read_text(path, "SNQI file"), f"SNQI file {str(path)!r}")
    if not isinstance(content, dict):
        raise BadInput(
            f"SNQI file {str(path)!r} holds {shortened(content)}; it must be an object with {', '.join(keys)}."
        )
    for key in keys:
        if key not in content:
            raise BadInput(f"{path}: {key} is missing; required are {', '.join(keys)}. Add it.")
    for key in content:
        if key not in keys:
            raise BadInput(
                f"{path}: {key} is unknown; allowed are {', '.join(keys)}.{did_you_mean(key, keys)} Remove it."
            )
    return content


def _number(value: object, key: str, path: Path, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        bound = "a finite number" if least == -math.inf else f"a finite number >= {least:g}"
        raise BadInput(f"{path}: {key} is {shortened(value)}; it must be {bound}.")
    return float(value)


def snqi(metrics: Mapping[str, np.ndarray], weights: Weights, baseline: Baseline) -> np.ndarray:
    """Episode metrics, each (n,), -> the index of every episode (n,). Raises BadInput when a metric is missing."""
    for metric in TERMS.values():
        if metric not in metrics:
            raise BadInput(f"SNQI needs the episode metric {metric!r}, which these episodes do not have.")
    total = weights["success"] * np.asarray(metrics["success"], dtype=np.float64)
    for key, metric in TERMS.items():
        if key == "success":
            continue
        value = np.asarray(metrics[metric], dtype=np.float64)
        if metric in NORMALISED:
            spread = baseline[metric]
            value = np.clip((value - spread.med) / (spread.p95 - spread.med), 0.0, 1.0)
        total = total - weights[key] * value
    return total


def fit_baseline(metrics: Mapping[str, np.ndarray]) -> dict[str, Spread]:
    """Medians and 95th percentiles of recorded episodes; each metric (n,). Raises BadInput where there is no spread.

    A collision is 0 or 1: its spread is fixed at 0 to 1, so that N(collision) is the collision itself.
    """
    baseline = {"collision": Spread(0.0, 1.0)}
    for metric in NORMALISED:
        if metric not in metrics:
            raise BadInput(f"The episodes to fit the SNQI baseline from lack the metric {metric!r}. Record them again.")
        values = np.asarray(metrics[metric], dtype=np.float64)
        if values.size == 0 or not np.isfinite(values).all():
            raise BadInput(
                f"The metric {metric!r} has no values or some that are not finite; it needs finite episodes."
            )
        if metric == "collision":
            continue
        med, p95 = float(np.median(values)), float(np.percentile(values, 95))
        if not p95 > med:
            raise BadInput(
                f"The metric {metric!r} has no spread (median {med}, 95th percentile {p95}) in {values.size} episodes. "
                "Record more, or more varied ones."
            )
        baseline[metric] = Spread(med, p95)
    return {metric: baseline[metric] for metric in NORMALISED}


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline file that `load_baseline` reads back as the same numbers."""
    content = {metric: asdict(baseline[metric]) for metric in NORMALISED}
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
