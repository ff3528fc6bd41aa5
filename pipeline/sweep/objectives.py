"""What a trial of a sweep is worth, and whether it is feasible: pure functions over recorded evaluations.

    curve = [Evaluation(0, {"success_rate": 0.1}), Evaluation(100, {"success_rate": 0.5})]
    running_value(Objective(name="auc", metric="success_rate"), curve, maximise=True)  # 0.3

A figure that was not measured at an evaluation is left out there, and never counts as 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from pipeline.config.sweep import Objective
from pipeline.config.task import SNQI, TaskConfig
from pipeline.errors import BadInput
from pipeline.names import Metric
from pipeline.play.evaluation import RATES, with_snqi
from pipeline.statistics.snqi import TERMS


class NotMeasured(Exception):
    """The evaluations do not hold what an objective or a constraint asks for."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a policy at a moment of training; a figure that is absent or not finite was not measured."""

    timestep: int  # environment steps of training before it
    figures: Mapping[str, float]


def running_value(objective: Objective, curve: Sequence[Evaluation], maximise: bool) -> float:
    """The objective over the evaluations so far, in order of timesteps, which a pruner compares. Raises NotMeasured."""
    figure = objective.figure
    points = [(e.timestep, value) for e in curve if isfinite(value := e.figures.get(figure, float("nan")))]
    values = [value for _, value in points]
    if objective.name in ("final_eval", "episodic_snqi"):  # the quality index, whose mean every evaluation holds
        if not points or points[-1][0] != curve[-1].timestep:  # an earlier evaluation never stands for the last
            raise NotMeasured(f"{figure!r} was not measured at the last evaluation")
        return values[-1]
    if not points:
        raise NotMeasured(f"{figure!r} was measured at none of {len(curve)} evaluations")
    if objective.name == "best_checkpoint":
        return max(values) if maximise else min(values)
    if objective.name == "last_n_mean":  # of all, where there are fewer
        return float(np.mean(values[-(objective.n or 1) :]))
    # auc: the area by trapezoids over the timesteps it spans, the mean height in the figure's unit; evaluations count
    # for the time they stand for, and a gap is a straight line between its neighbours
    if len(points) == 1:
        return values[0]
    steps, heights = np.array(points, np.float64).T
    return float(np.sum(np.diff(steps) * (heights[1:] + heights[:-1]) / 2) / (steps[-1] - steps[0]))


def worth(
    objective: Objective,
    task: TaskConfig,
    curve: Sequence[Evaluation],
    final: Mapping[str, float],
    episodes: Mapping[str, np.ndarray] | None,
) -> tuple[float, str]:
    """What a training is worth, and whether that is of `episodes` or of `aggregate` figures. Raises NotMeasured.

    `final` holds the figures of the best checkpoint on fresh episodes, `episodes` each metric of those, (E,) float64.
    The quality index is the mean over them; where they are missing it is the index of the averages, which is not the
    same, as the index is not linear.
    """
    if objective.name != "episodic_snqi":
        return running_value(objective, curve, maximised(objective, task)), "aggregate"
    source = "episodes"
    if episodes is None or not (SNQI in episodes or episodes.keys() >= {*TERMS.values()}):
        averages = {metric: final.get(RATES.get(metric, metric), float("nan")) for metric in TERMS.values()}
        missing = sorted(metric for metric, value in averages.items() if not isfinite(value))
        if missing:
            what = f"the quality index needs {missing[0]!r}"
            raise NotMeasured(f"{what}, of which there are neither episodes nor an average")
        episodes, source = {metric: np.array([value]) for metric, value in averages.items()}, "aggregate"
    if SNQI not in episodes:
        episodes = with_snqi(task, episodes)
    return float(np.mean(episodes[SNQI])), source


def maximised(objective: Objective, task: TaskConfig) -> bool:
    """Direction follows the metric unless the config says otherwise."""
    if objective.direction is not None:
        return objective.direction == "maximize"
    return objective.figure not in task.minimised


def violations(constraints: Mapping[str, float], figures: Mapping[str, float]) -> dict[str, float]:
    """Figure -> excess over its limit; 0 or less is feasible: `{"collision_rate": 0.05}` at 0.07 -> 0.02.

    Raises NotMeasured: what was not measured is not safe.
    """
    excess = {figure: figures.get(figure, float("nan")) - limit for figure, limit in constraints.items()}
    for figure, value in excess.items():
        if not isfinite(value):
            raise NotMeasured(f"constraint on {figure!r}: it was not measured")
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
    asked = {
        "best_metric": f"{Metric.RETURN}_mean" if best_metric == Metric.EPISODE_RETURN else best_metric,
        "objective.metric": objective.figure,
        **{f"constraint_{figure}_max": figure for figure in constraints},
    }
    for setting, figure in asked.items():
        if fault := task.unmeasured(setting, [figure]):
            raise BadInput(fault)


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
        values = [result.value for result in self.fresh if result.value is not None]
        return float(np.mean(values)) if values and len(values) == len(self.fresh) else None

    def mean(self, figure: str) -> float | None:
        """Of the best checkpoints; None unless it was measured on all fresh seeds."""
        values = [result.figures[figure] for result in self.fresh if figure in result.figures]
        return sum(values) / len(values) if values and len(values) == len(self.fresh) else None

    @property
    def state(self) -> str:
        """Feasible, infeasible, or why it did not finish on the first seed on which it did not."""
        reasons = [result.reason for result in self.fresh if result.reason]
        return reasons[0] if reasons else "feasible" if self.eligible else "infeasible"

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
