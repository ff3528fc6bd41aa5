"""Around SB3's own loop: scheduled evaluations, the best checkpoint, convergence, and SB3's log as events."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from pipeline.learning.continued import Continued
from pipeline.learning.jobs import Emit, EvaluationPoint, TrainingEvent, TrainingJob
from pipeline.learning.schedule import converged_at, evaluation_episodes, next_evaluation, select_figure
from pipeline.names import EVAL_PREFIX, Metric
from pipeline.play.evaluation import (
    EpisodeRecords,
    evaluation_env,
    mean_intervals,
    point_figures,
    run_episodes,
    with_intervals,
)
from pipeline.policies import WRAPPERS, act_function, save_policy, tensors_of
from pipeline.tasks import Task


class RolloutBoundary(Exception):
    """Ends SB3's `learn` before a rollout, where a callback cannot return False."""

    def __init__(self, ended: bool) -> None:
        super().__init__()
        self.ended = ended  # the training, not only a part of it, after which a checkpoint is due


class Emitter:
    """Hands events on, remembers those with metrics, and keeps the time."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._started = time.perf_counter()
        self._said: list[tuple[int, Mapping[str, float]]] = []

    def __call__(self, event: TrainingEvent) -> None:
        if event.metrics:
            self._said.append((event.timestep, dict(event.metrics)))
        self._emit(event)

    def elapsed(self) -> float:
        """Seconds of the training so far, those before its checkpoint included."""
        return time.perf_counter() - self._started

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"events": self._said, "elapsed": self.elapsed()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Say again what was said until a checkpoint: a kill may have lost some of it."""
        for timestep, metrics in state["events"]:
            self(TrainingEvent("metrics", timestep, metrics))
        self._started -= state["elapsed"]


class NumberWriter(KVWriter):
    """SB3 logger output that hands the numbers of every dump, under SB3's own keys, and their step to `take`.

    Not those that say again what every point has anyway, its step and its time, or what is a setting.
    """

    KNOWN = ("time/total_timesteps", "time/time_elapsed", "train/clip_range")

    def __init__(self, take: Callable[[dict[str, float], int], None]) -> None:
        self._take = take

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        said = {k: v for k, v in key_values.items() if k not in self.KNOWN}
        self._take({k: float(v) for k, v in said.items() if not isinstance(v, str) and hasattr(v, "__float__")}, step)

    def close(self) -> None:
        """Nothing is held open."""


class EvaluationCallback(BaseCallback):
    """Evaluates at the first rollout boundary at or after every scheduled step, from timestep 0 on.

    Keeps the tensors of the best checkpoint (ties: the earlier) and leaves policies to be drawn every `visualize_every`
    steps. Raises `RolloutBoundary` once converged, and at or after every multiple of `checkpoint_every` (0: never).
    """

    def __init__(self, task: Task, job: TrainingJob, emit: Emit) -> None:
        super().__init__()
        self._task, self._job, self._emit = task, job, emit
        self._episodes = evaluation_episodes(task, job.training.scenario_set, job.training.evaluation)
        self.env = evaluation_env(task)  # kept from one evaluation to the next, and for the last
        self._due = 0
        self._best = float("-inf")
        self.points: list[EvaluationPoint] = []
        self.best_timestep = 0
        self.best_tensors: dict[str, torch.Tensor] = {}
        self.best_unit: float | None = None  # of its critic's values
        self.seconds = 0.0

    def _on_training_start(self) -> None:
        every = self._job.training.checkpoint_every
        self._boundary = (self.model.num_timesteps // every + 1) * every if every else None

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self._due:
            self._evaluate()
            self._due = next_evaluation(self._job.training.evaluation, self.model.num_timesteps)
            if self._job.convergence is not None and self._job.convergence.stop and self.converged_at() is not None:
                raise RolloutBoundary(ended=True)
        if self._boundary is not None and self.model.num_timesteps >= self._boundary:
            raise RolloutBoundary(ended=False)

    def _on_step(self) -> bool:
        return True

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "points": {
                point.timestep: {name: torch.from_numpy(np.array(a)) for name, a in point.records.metrics.items()}
                for point in self.points
            },
            "due": self._due,
            "best": self._best,
            "best_timestep": self.best_timestep,
            "best_policy": self.best_tensors,
            "best_unit": self.best_unit,
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where a checkpoint was taken."""
        self.points = []
        for timestep, tensors in state["points"].items():
            metrics = {name: tensor.numpy() for name, tensor in tensors.items()}
            records = EpisodeRecords(self._episodes, metrics, None, int(metrics[Metric.LENGTH].sum()))
            self.points.append(EvaluationPoint(int(timestep), records))
        self._due, self._best, self.seconds = state["due"], state["best"], state["seconds"]
        self.best_timestep, self.best_tensors = state["best_timestep"], state["best_policy"]
        self.best_unit = state["best_unit"]

    def finish(self) -> None:
        """Evaluate what the last update left, unless that was just done."""
        if self.points[-1].timestep != self.model.num_timesteps:
            self._evaluate()

    def close(self) -> None:
        self.env.close()

    def converged_at(self) -> int | None:
        """The measured timestep of convergence so far, None without a convergence test."""
        if self._job.convergence is None:
            return None
        history = [(point.timestep, point_figures(point.records)) for point in self.points]
        return converged_at(history, self._task.config.thresholds, self._job.convergence.patience)

    def _evaluate(self) -> None:
        started, job = time.perf_counter(), self._job
        assert isinstance(self.model, Continued)
        policy, timestep = self.model.acting_policy(), self.model.num_timesteps
        records = run_episodes(self._task, act_function(policy), self._episodes, env=self.env)
        figures = point_figures(records)
        value = select_figure(figures, job.best_metric, self._task.config)
        before = self.points[-1].timestep if self.points else None
        self.points.append(EvaluationPoint(timestep, replace(records, action_histogram=None)))
        if value > self._best:
            self._best, self.best_timestep, self.best_tensors = value, timestep, tensors_of(policy)
            self.best_unit = self.model.reward_unit()
        self.model.on_evaluation(records.metrics[Metric.RETURN])
        # every point costs; what nobody judges a training by gets its interval, and all of it quantiles, in the end
        watched = (*self._task.config.thresholds, "return_mean")
        summary = with_intervals(mean_intervals(records), of=watched)
        metrics = {f"{EVAL_PREFIX}{name}": value for name, value in summary.items()}
        self._emit(TrainingEvent("metrics", timestep, metrics))
        every = 0 if job.learning_rate_zero else job.training.visualize_every
        if every and (before is None or timestep // every != before // every):
            folder = Path(job.output) / f"shown-{timestep}"
            save_policy(policy, folder, {WRAPPERS: self._task.wrappers})
            self._emit(TrainingEvent("policy", timestep, {}, str(folder)))
        self.seconds += time.perf_counter() - started
