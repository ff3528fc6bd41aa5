"""Around SB3's own loop: scheduled evaluations, the best checkpoint, convergence, and SB3's log as events."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.base import Bound
from pipeline.config.task import TaskConfig
from pipeline.config.training import Convergence, EvaluationSchedule
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput, did_you_mean
from pipeline.learning.jobs import Emit, EvaluationPoint, TrainingEvent
from pipeline.names import EVAL_PREFIX, Metric
from pipeline.play.evaluation import (
    EpisodeRecords,
    mean_intervals,
    point_figures,
    run_episodes,
    with_intervals,
)
from pipeline.play.rollouts import evaluation_env
from pipeline.policies import act_function, tensors_of
from pipeline.tasks import Task


class TrainingDone(Exception):
    """Ends SB3's `learn` at a rollout boundary, where a callback cannot return False."""


class Emitter:
    """Hands events on, numbers those with metrics and remembers them, and keeps the time."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._started = time.perf_counter()
        self._said: list[tuple[int, Mapping[str, float]]] = []
        self.seconds = 0.0  # that handing over took

    @property
    def events(self) -> int:
        """How many with metrics there were."""
        return len(self._said)

    def __call__(self, event: TrainingEvent) -> None:
        started = time.perf_counter()
        if event.metrics:
            self._said.append((event.timestep, dict(event.metrics)))
            event = replace(event, number=len(self._said))
        self._emit(event)
        self.seconds += time.perf_counter() - started

    def elapsed(self) -> float:
        """Seconds of the training so far, those before its checkpoint included."""
        return time.perf_counter() - self._started

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as plain data."""
        return {"events": self._said, "elapsed": self.elapsed(), "seconds": self.seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Say again, under the same numbers, what was said until a checkpoint: a kill may have lost some of it."""
        for timestep, metrics in state["events"]:
            self(TrainingEvent("metrics", timestep, metrics))
        self._started -= state["elapsed"]
        self.seconds += state["seconds"]


class EventWriter(KVWriter):
    """SB3 logger output that hands every dump, once a rollout, to `emit`, under SB3's own keys.

    Not those that say again what every point has anyway, its step and its time, or what is a setting.
    """

    KNOWN = ("time/total_timesteps", "time/time_elapsed", "train/clip_range")

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        said = {k: v for k, v in key_values.items() if k not in self.KNOWN}
        numbers = {k: float(v) for k, v in said.items() if not isinstance(v, str) and hasattr(v, "__float__")}
        self._emit(TrainingEvent("metrics", step, numbers))

    def close(self) -> None:
        """Nothing is held open."""


def converged_at(
    evaluations: Sequence[tuple[int, Mapping[str, float]]], thresholds: Mapping[str, Bound], patience: int
) -> int | None:
    """First timestep from which `patience` consecutive evaluations all meet every threshold; None when none did.

    `[(0, .2), (10, .9), (20, .8), (30, .9), (40, .95)]` against `>= 0.9`, patience 2 -> 30.
    """
    held: list[int] = []
    for timestep, figures in evaluations:
        met = all(bound.holds(figures[name]) for name, bound in thresholds.items())
        held = [*held, timestep] if met else []
        if len(held) == patience:
            return held[0]
    return None


def next_evaluation(schedule: EvaluationSchedule, timestep: int) -> int:
    """The first scheduled step after `timestep`: segments of 10 until 30, then of 100: 0 -> 10, 25 -> 30, 30 -> 130."""
    start = 0
    for segment in schedule.segments:
        if segment.until_step is None or timestep < segment.until_step:
            following = start + ((timestep - start) // segment.every_steps + 1) * segment.every_steps
            return following if segment.until_step is None else min(following, segment.until_step)
        start = segment.until_step
    raise AssertionError("the last segment has no end")


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


def _records(episodes: Sequence[Episode], metrics: dict[str, np.ndarray]) -> EpisodeRecords:
    """What an evaluation keeps: no histogram of actions."""
    return EpisodeRecords(tuple(episodes), metrics, None, int(metrics[Metric.LENGTH].sum()))


class EvaluationCallback(BaseCallback):
    """Evaluates at the first rollout boundary at or after every scheduled step, from timestep 0 on.

    Keeps the tensors of the best checkpoint (ties: the earlier), `show`s every policy it evaluated (with its timestep
    and the one of the evaluation before) and raises `TrainingDone` once converged.
    """

    def __init__(
        self,
        task: Task,
        episodes: Sequence[Episode],
        schedule: EvaluationSchedule,
        convergence: Convergence | None,
        best_metric: str,
        budget: int,
        emit: Emit,
        show: Callable[[ActorCriticPolicy, int, int | None], None] = lambda policy, timestep, before: None,
    ) -> None:
        super().__init__()
        self._show = show
        self._task, self._episodes, self._schedule = task, episodes, schedule
        self._convergence, self._best_metric, self._budget, self._emit = convergence, best_metric, budget, emit
        self.env = evaluation_env(task)  # kept from one evaluation to the next, and for the last
        self._due = 0
        self._best = float("-inf")
        self.points: list[EvaluationPoint] = []
        self.best_timestep = 0
        self.best_tensors: dict[str, torch.Tensor] = {}
        self.seconds = 0.0

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self._due:
            self._evaluate()
            self._due = next_evaluation(self._schedule, self.model.num_timesteps)
            if self._convergence is not None and self._convergence.stop and self.converged_at() is not None:
                raise TrainingDone

    def _on_step(self) -> bool:
        return True

    def arrays(self) -> dict[str, np.ndarray]:
        """The records of all evaluations so far, for a checkpoint."""
        return {f"{i}/{name}": a for i, point in enumerate(self.points) for name, a in point.records.metrics.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the arrays and the best policy's tensors, as plain data."""
        return {
            "timesteps": [point.timestep for point in self.points],
            "due": self._due,
            "best": self._best,
            "best_timestep": self.best_timestep,
            "seconds": self.seconds,
        }

    def restore(
        self, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray], best: dict[str, torch.Tensor]
    ) -> None:
        """Be where a checkpoint was taken."""
        self.points = []
        for i, timestep in enumerate(state["timesteps"]):
            metrics = {name.removeprefix(f"{i}/"): a for name, a in arrays.items() if name.startswith(f"{i}/")}
            self.points.append(EvaluationPoint(timestep, _records(self._episodes, metrics)))
        self._due, self._best = state["due"], state["best"]
        self.best_timestep, self.best_tensors, self.seconds = state["best_timestep"], best, state["seconds"]

    def finish(self) -> None:
        """Evaluate what the last update left, unless that was just done."""
        if self.points[-1].timestep != self.model.num_timesteps:
            self._evaluate()

    def close(self) -> None:
        self.env.close()

    @property
    def _policy(self) -> ActorCriticPolicy:
        policy = self.model.policy
        assert isinstance(policy, ActorCriticPolicy)
        return policy

    def converged_at(self) -> int | None:
        """The measured timestep of convergence so far, None without a convergence test."""
        if self._convergence is None:
            return None
        history = [(point.timestep, point_figures(point.records)) for point in self.points]
        return converged_at(history, self._task.config.thresholds, self._convergence.patience)

    def _evaluate(self) -> None:
        started = time.perf_counter()
        records = run_episodes(self._task, act_function(self._policy), self._episodes, env=self.env)
        figures = point_figures(records)
        self._require_thresholds(figures)
        value = select_figure(figures, self._best_metric, self._task.config)
        self.points.append(EvaluationPoint(self.model.num_timesteps, _records(self._episodes, records.metrics)))
        if value > self._best:
            self._best, self.best_timestep = value, self.model.num_timesteps
            self.best_tensors = tensors_of(self._policy)
        self._announce(records, figures)
        self._show(self._policy, self.model.num_timesteps, self.points[-2].timestep if len(self.points) > 1 else None)
        self.seconds += time.perf_counter() - started

    def _require_thresholds(self, figures: Mapping[str, float]) -> None:
        for name in self._task.config.thresholds:
            if name not in figures:
                raise BadInput(
                    f"task {self._task.config.name!r}: threshold {name!r} is not a measured figure."
                    f"{did_you_mean(name, figures)} Measured are: {', '.join(figures)}"
                )

    def _announce(self, records: EpisodeRecords, figures: Mapping[str, float]) -> None:
        # every point costs; what nobody judges a training by gets its interval, and all of it quantiles, in the end
        watched = (*self._task.config.thresholds, "return_mean")
        summary = with_intervals(mean_intervals(records), of=watched)
        metrics = {f"{EVAL_PREFIX}{name}": value for name, value in summary.items()}
        self._emit(TrainingEvent("metrics", self.model.num_timesteps, metrics))
        shown = [f"{name} {figures[name]:.3g}" for name in watched]
        text = f"{self.model.num_timesteps:,} steps: {', '.join(shown)}"
        self._emit(
            TrainingEvent(
                "status", self.model.num_timesteps, {}, text, min(1.0, self.model.num_timesteps / self._budget)
            )
        )
