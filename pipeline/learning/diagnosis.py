"""Is an expert good enough, and if not, what a person can do about it. Pure functions over measured evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pipeline.config.base import Bound
from pipeline.learning.jobs import TrainingResult
from pipeline.play.evaluation import point_figures, summarise_by_scenario

TREND_EVALUATIONS = 10  # the last evaluations a trend is read from
Trend = Literal["improving", "flat", "worsening", "too short to tell"]

ADVICE: dict[Trend, str] = {
    "improving": "it was still improving: raise training.total_timesteps",
    "flat": "it has levelled off: try another learning rate, entropy coefficient or network, or a denser reward",
    "worsening": "it got worse: lower the learning rate or let it fall to 0 (training.learning_rate.final)",
    "too short to tell": "there are too few evaluations: raise training.total_timesteps or evaluate more often",
}


@dataclass(frozen=True)
class Shortfall:
    """One threshold that one seed's best checkpoint missed on fresh episodes."""

    seed: int
    figure: str
    value: float
    needs: str  # ">= 0.9"
    missed_by: float
    worst_scenario: str
    worst_value: float
    trend: Trend
    slope_per_100k_steps: float  # of the figure over the last evaluations

    def sentence(self) -> str:
        return (
            f"seed {self.seed}: {self.figure} {self.value:.3f} (needs {self.needs}, missed by {self.missed_by:.3f}; "
            f"worst in {self.worst_scenario}: {self.worst_value:.3f}); {ADVICE[self.trend]}"
        )


@dataclass(frozen=True)
class Diagnosis:
    """Promotable or not, with every shortfall."""

    shortfalls: tuple[Shortfall, ...]
    converged_at: Mapping[int, int | None]  # seed -> measured timestep

    @property
    def promotable(self) -> bool:
        return not self.shortfalls

    def to_json(self) -> dict[str, Any]:
        return {
            "promotable": self.promotable,
            "converged_at": {str(seed): step for seed, step in self.converged_at.items()},
            "shortfalls": [{**asdict(s), "advice": ADVICE[s.trend]} for s in self.shortfalls],
        }


def diagnose(results: Sequence[TrainingResult], thresholds: Mapping[str, Bound]) -> Diagnosis:
    """Hold every seed's best checkpoint, on fresh episodes, to the task's thresholds."""
    found = []
    for result in results:
        figures = point_figures(result.final)
        for figure, bound in thresholds.items():
            value = figures[figure]
            if bound.holds(value):
                continue
            too_low = bound.min is not None and not value >= bound.min
            limit = bound.min if too_low else bound.max
            assert limit is not None
            steps = [point.timestep for point in result.evaluations]
            curve = [point_figures(point.records)[figure] for point in result.evaluations]
            trend, slope = trend_of(steps, curve, "higher" if too_low else "lower")
            by_scenario = {name: s[figure].value for name, s in summarise_by_scenario(result.final).items()}
            worst = (min if too_low else max)(by_scenario, key=lambda name: by_scenario[name])
            missed = abs(value - limit)
            found.append(
                Shortfall(result.seed, figure, value, str(bound), missed, worst, by_scenario[worst], trend, slope)
            )
    return Diagnosis(tuple(found), {result.seed: result.converged_at for result in results})


def trend_of(steps: Sequence[int], values: Sequence[float], better: Literal["higher", "lower"]) -> tuple[Trend, float]:
    """Least-squares slope of the last evaluations, per 100,000 steps; flat when below twice its standard error."""
    x = np.asarray(steps[-TREND_EVALUATIONS:], float) / 100_000
    y = np.asarray(values[-TREND_EVALUATIONS:], float)
    if len(x) < 4 or np.ptp(x) == 0:
        return "too short to tell", 0.0
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    residual = y - y.mean() - slope * centred
    standard_error = float(np.sqrt(residual @ residual / (len(x) - 2) / (centred @ centred)))
    if abs(slope) <= 2 * standard_error or slope == 0:
        return "flat", slope
    return ("improving" if (slope > 0) == (better == "higher") else "worsening"), slope
