"""When a policy in training is evaluated, on which episodes, and what is read off its evaluations. Pure functions."""

import itertools
from collections.abc import Mapping, Sequence

from pipeline.config.base import Bound
from pipeline.config.task import TaskConfig
from pipeline.config.training import EvaluationSchedule
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput, did_you_mean
from pipeline.names import Metric
from pipeline.tasks import Purpose, Task


def next_evaluation(schedule: EvaluationSchedule, timestep: int) -> int:
    """The first scheduled step after `timestep`: segments of 10 until 30, then of 100: 0 -> 10, 25 -> 30, 30 -> 130."""
    start = 0
    for segment in schedule.segments:
        if segment.until_step is None or timestep < segment.until_step:
            following = start + ((timestep - start) // segment.every_steps + 1) * segment.every_steps
            return following if segment.until_step is None else min(following, segment.until_step)
        start = segment.until_step
    raise AssertionError("the last segment has no end")


def evaluation_episodes(task: Task, scenario_set: str, schedule: EvaluationSchedule) -> tuple[Episode, ...]:
    """The fixed episodes of the scheduled evaluations: the same for every arm and seed."""
    return task.episodes(scenario_set, schedule.seed, schedule.episodes, Purpose.EVALUATE)


def final_episodes(task: Task, scenario_set: str, schedule: EvaluationSchedule, count: int) -> tuple[Episode, ...]:
    """Episodes that no scheduled evaluation has played, the same for every arm and seed."""
    played = {episode.seed for episode in evaluation_episodes(task, scenario_set, schedule)}
    attempts = (task.episodes(scenario_set, (schedule.seed, n), count, Purpose.EVALUATE) for n in itertools.count(1))
    return next(fresh for fresh in attempts if played.isdisjoint(episode.seed for episode in fresh))


def converged_at(
    evaluations: Sequence[tuple[int, Mapping[str, float]]], thresholds: Mapping[str, Bound], patience: int
) -> int | None:
    """First timestep from which `patience` consecutive evaluations all meet every threshold; None when none did.

    `[(0, .2), (10, .9), (20, .8), (30, .9), (40, .95)]` against `>= 0.9`, patience 2 -> 30.
    """
    met = [all(bound.holds(figures[name]) for name, bound in thresholds.items()) for _, figures in evaluations]
    return next((evaluations[i][0] for i in range(len(met) - patience + 1) if all(met[i : i + patience])), None)


def select_figure(figures: Mapping[str, float], metric: str, task: TaskConfig) -> float:
    """The value by which checkpoints are ranked, larger is better. Raises BadInput when it is not measured."""
    key = "return_mean" if metric == Metric.EPISODE_RETURN else metric
    if key not in figures:
        known = [Metric.EPISODE_RETURN, *figures]
        raise BadInput(
            f"best_metric {metric!r} is not measured in this task.{did_you_mean(metric, known)} "
            f"It measures: {', '.join(known)}"
        )
    return -figures[key] if key in task.minimised else figures[key]
