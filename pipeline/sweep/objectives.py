"""What a trial of a sweep is worth, and whether it is feasible: pure functions over recorded evaluations.

    curve = [Evaluation(0, {"success_rate": 0.1}), Evaluation(100, {"success_rate": 0.5})]
    auc(curve, "success_rate")                                   # 0.3

A figure that was not measured at an evaluation is left out there, and never counts as 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.config.sweep import Objective
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput, did_you_mean
from pipeline.names import Metric
from pipeline.play.evaluation import RATES, SNQI
from pipeline.statistics.snqi import TERMS, load_baseline, load_weights, snqi

EPISODES: Final = "episodes"
AGGREGATE: Final = "aggregate"

Snqi = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # episode metrics, each (E,) -> index (E,)


class NotMeasured(Exception):
    """The evaluations do not hold what an objective or a constraint asks for."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a policy at a moment of training; a figure that is absent or not finite was not measured."""

    timestep: int  # environment steps of training before it
    figures: Mapping[str, float]

    def value(self, figure: str) -> float | None:
        value = self.figures.get(figure)
        return value if value is not None and isfinite(value) else None


@dataclass(frozen=True)
class Measured:
    """All that is recorded of one training: its curve, and its best checkpoint on fresh episodes."""

    curve: tuple[Evaluation, ...]  # in order of timesteps
    final: Mapping[str, float]  # figures of the best checkpoint
    episodes: Mapping[str, np.ndarray] | None = None  # metric -> (E,) float64 of the same; None: not recorded


@dataclass(frozen=True)
class Worth:
    """Value of an objective and what it was computed from: `episodes` or `aggregate` figures."""

    value: float
    source: str


def best_checkpoint(curve: Sequence[Evaluation], figure: str, maximise: bool) -> float:
    """The best value of the figure at any evaluation. Raises NotMeasured."""
    values = [value for _, value in _measured(curve, figure)]
    return max(values) if maximise else min(values)


def final_eval(curve: Sequence[Evaluation], figure: str) -> float:
    """The value at the last evaluation; an earlier one never stands for it. Raises NotMeasured."""
    if not curve or (value := curve[-1].value(figure)) is None:
        raise NotMeasured(f"{figure!r} was not measured at the last evaluation")
    return value


def last_n_mean(curve: Sequence[Evaluation], figure: str, n: int) -> float:
    """Mean over the last `n` evaluations that measured the figure, over all of them when there are fewer.

    Raises NotMeasured when there is none.
    """
    values = [value for _, value in _measured(curve, figure)][-n:]
    return float(np.mean(values))


def auc(curve: Sequence[Evaluation], figure: str) -> float:
    """Area under the curve by trapezoids, divided by its length in timesteps: the mean height, in the figure's unit.

    Evaluations count for the time they stand for, however irregular they are; where the figure was not measured the
    curve is a straight line between its neighbours. Raises NotMeasured.
    """
    points = _measured(curve, figure)
    steps = np.array([timestep for timestep, _ in points], np.float64)
    values = np.array([value for _, value in points], np.float64)
    if len(points) == 1:
        return float(values[0])
    return float(np.sum(np.diff(steps) * (values[1:] + values[:-1]) / 2) / (steps[-1] - steps[0]))


def episodic_snqi(final: Mapping[str, float], episodes: Mapping[str, np.ndarray] | None, formula: Snqi) -> Worth:
    """Mean quality index of the episodes; without episode records, the index of the aggregated figures.

    The index is not linear, so the two differ: the source says which it is. Raises NotMeasured.
    """
    if episodes is not None and SNQI in episodes:
        return Worth(float(np.mean(episodes[SNQI])), EPISODES)
    if episodes is not None and all(metric in episodes for metric in TERMS.values()):
        return Worth(float(np.mean(formula(episodes))), EPISODES)
    aggregated = {metric: final.get(RATES.get(metric, metric)) for metric in TERMS.values()}
    columns = {name: np.array([value]) for name, value in aggregated.items() if value is not None and isfinite(value)}
    missing = sorted(set(aggregated) - set(columns))
    if missing:
        raise NotMeasured(f"the quality index needs {missing[0]!r}, of which there are neither episodes nor an average")
    return Worth(float(formula(columns)[0]), AGGREGATE)


def snqi_formula(task: TaskConfig) -> Snqi | None:
    """The quality index with the task's weights and baseline; None for a task that names none. Raises BadInput."""
    files = task.snqi
    if files is None:
        return None
    weights, baseline = load_weights(Path(files.weights)), load_baseline(Path(files.baseline))
    return lambda episodes: snqi(episodes, weights, baseline)


def worth(objective: Objective, measured: Measured, formula: Snqi | None, maximise: bool) -> Worth:
    """What a training is worth. Raises NotMeasured."""
    if objective.name == "episodic_snqi":
        if formula is None:
            raise NotMeasured("the task names no files of the quality index")
        return episodic_snqi(measured.final, measured.episodes, formula)
    return Worth(running_value(objective, measured.curve, maximise), AGGREGATE)


def running_value(objective: Objective, curve: Sequence[Evaluation], maximise: bool) -> float:
    """The objective over the evaluations so far, which a pruner compares. Raises NotMeasured."""
    figure = objective.figure
    if objective.name == "best_checkpoint":
        return best_checkpoint(curve, figure, maximise)
    if objective.name == "last_n_mean":
        return last_n_mean(curve, figure, objective.n or 1)
    if objective.name == "auc":
        return auc(curve, figure)
    return final_eval(curve, figure)  # final_eval, and the quality index, whose mean every evaluation holds


def maximised(objective: Objective, task: TaskConfig) -> bool:
    """Direction follows the metric unless the config says otherwise."""
    if objective.direction is not None:
        return objective.direction == "maximize"
    return objective.figure not in task.minimised


def violations(constraints: Mapping[str, float], figures: Mapping[str, float]) -> dict[str, float]:
    """Figure -> excess over its limit; 0 or less is feasible: `{"collision_rate": 0.05}` at 0.07 -> 0.02.

    Raises NotMeasured: what was not measured is not safe.
    """
    excess = {}
    for figure, limit in constraints.items():
        value = figures.get(figure)
        if value is None or not isfinite(value):
            raise NotMeasured(f"constraint on {figure!r}: it was not measured")
        excess[figure] = value - limit
    return excess


def worst(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest excess of every constraint over the seeds: a trial is as safe as its least safe seed."""
    return {figure: max(seed[figure] for seed in of_seeds) for figure in of_seeds[0]} if of_seeds else {}


def feasible(excess: Mapping[str, float]) -> bool:
    return all(value <= 0 for value in excess.values())


def check_measurable(
    objective: Objective, constraints: Mapping[str, float], best_metric: str, task: TaskConfig
) -> None:
    """Refuse a figure that the task does not measure. Raises BadInput, before the first trial."""
    known = [
        *(f"{metric}_mean" for metric in (Metric.RETURN, Metric.LENGTH)), Metric.SUCCESS_RATE,
        *([] if task.collision is None else [Metric.COLLISION_RATE]),
        *task.metrics, *([] if task.snqi is None else [SNQI]),
    ]  # fmt: skip
    best = f"{Metric.RETURN}_mean" if best_metric == Metric.EPISODE_RETURN else best_metric
    asked = {
        "best_metric": best,
        "objective.metric": objective.figure,
        **{f"constraint_{figure}_max": figure for figure in constraints},
    }
    for setting, figure in asked.items():
        if figure not in known:
            raise BadInput(
                f"{setting}: {figure!r} is not measured in task {task.name!r}.{did_you_mean(figure, known)} "
                f"It measures: {', '.join(known)}"
            )


def _measured(curve: Sequence[Evaluation], figure: str) -> list[tuple[int, float]]:
    points = [(e.timestep, value) for e in curve if (value := e.value(figure)) is not None]
    if not points:
        raise NotMeasured(f"{figure!r} was measured at none of {len(curve)} evaluations")
    return points


# --- what is trained again on fresh seeds ----------------------------------------------------------------------------


@dataclass(frozen=True)
class FreshResult:
    """One training on a fresh seed, or the reason why there is none."""

    seed: int
    value: float | None  # of the objective
    excess: Mapping[str, float]  # constraint -> excess over its limit
    figures: Mapping[str, float]  # of the best checkpoint on fresh episodes
    reason: str | None = None


@dataclass(frozen=True)
class Contender:
    """A trial that is trained again, or the default."""

    trial: int | None  # None: the default, the base config as it is
    sweep_value: float | None  # what it was worth as a trial
    fresh: tuple[FreshResult, ...]

    @property
    def name(self) -> str:
        return "default" if self.trial is None else f"trial {self.trial}"

    @property
    def fresh_value(self) -> float | None:
        """Mean over all fresh seeds; None unless all of them finished."""
        values = [result.value for result in self.fresh]
        measured = [value for value in values if value is not None]
        return float(np.mean(measured)) if measured and len(measured) == len(values) else None

    @property
    def excess(self) -> dict[str, float]:
        return worst([result.excess for result in self.fresh]) if self.fresh_value is not None else {}

    @property
    def eligible(self) -> bool:
        """Finished and feasible on every fresh seed."""
        return self.fresh_value is not None and feasible(self.excess)


def winner(contenders: Sequence[Contender], maximise: bool) -> Contender | None:
    """The trial that is best on the fresh seeds among those feasible there; ties go to the better trial."""
    sign = 1.0 if maximise else -1.0
    able = [c for c in contenders if c.trial is not None and c.eligible]
    return max(able, key=lambda c: sign * (c.fresh_value or 0.0), default=None)
