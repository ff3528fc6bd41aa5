"""Episodes and trainings that run, told: progress on a terminal or in lines, films, warnings, what they came to."""

import sys
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Final, Self

from tqdm import tqdm

from pipeline.errors import printable, say
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult
from pipeline.learning.schedule import evaluation_episodes
from pipeline.names import EVAL_PREFIX, Artifact, Metric
from pipeline.play.demonstrators import policy_actions
from pipeline.play.evaluation import point_figures
from pipeline.report.clips import check_drawable, draw_episode, save_film
from pipeline.tasks import Task

LINE_EVERY_SECONDS: Final = 30.0


class ProgressBar:
    """How much of something is done: a bar on a terminal, elsewhere a line every 30 s.

    with ProgressBar("promote", 400, "episodes") as progress:
        progress.add(1)
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title, self._total, self._unit, self._said = title, total, unit, ""
        self._last_line = time.monotonic()
        shown = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", unit_scale=True, disable=not shown)
        self._done = 0  # a bar that is not shown does not count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()

    def add(self, count: int, also: str = "") -> None:
        """So much more is done; `also` is a figure that people want to see move."""
        self._done += count
        self._bar.update(count)
        if also:
            self._said = f", {also}"
            self._bar.set_postfix_str(also)
        if self._bar.disable and time.monotonic() - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            say(self.line(), sys.stderr)

    def note(self, text: str) -> None:
        """A line between what moves."""
        self._bar.write(printable(f"{self._title} {text}"), file=sys.stderr)

    def line(self) -> str:
        """`finetune: 1,200,000 of 4,000,000 steps (30 %), last success rate 0.85`."""
        done = f"{self._done:,} {self._unit}"
        if self._total is not None:
            done = f"{self._done:,} of {self._total:,} {self._unit} ({self._done / self._total:.0%})"
        return f"{self._title}: {done}{self._said}"


class TrainingProgress(ProgressBar):
    """Environment steps done over all jobs, and the newest success rate seen; films of the jobs with index in `filmed`.

    with TrainingProgress("finetune", jobs) as progress:
        run_side_by_side(jobs, workers, progress.on_event)
    """

    def __init__(self, title: str, jobs: Sequence[TrainingJob], filmed: Container[int] = ()) -> None:
        self._tasks = [Task(job.task, job.training.environment, job.training.use_camera) for job in jobs]
        for job, task in zip(jobs, self._tasks, strict=True):
            check_drawable(task, "training.visualize_every", job.training.visualize_every)
        self._jobs, self._filmed = jobs, filmed
        self._steps = [0] * len(jobs)
        super().__init__(title, sum(job.budget for job in jobs), "steps")

    def on_event(self, index: int, event: TrainingEvent) -> Path | None:
        """Take note of what job `index` says.

        A policy that it shows is filmed in the first evaluation episode: the file of that.
        """
        job, task = self._jobs[index], self._tasks[index]
        if event.kind == "policy":
            if index not in self._filmed:
                return None
            episode = evaluation_episodes(task, job.training.scenario_set, job.training.evaluation)[0]
            actor = policy_actions(task, event.text, f"of step {event.timestep}")
            about = f"{job.task.name}, seed {job.seed}, after {event.timestep:,} steps of training"
            path = Path(job.output) / Artifact.PLAYBACK / f"step-{event.timestep:09d}"
            return save_film(draw_episode(task, episode, actor, about), path)
        if event.kind == "note":
            self.note(f"seed {job.seed}: {event.text}")
        before, done = self._steps[index], min(event.timestep, job.budget)
        self._steps[index] = max(before, done)
        success = event.metrics.get(f"{EVAL_PREFIX}{Metric.SUCCESS_RATE}")
        self.add(self._steps[index] - before, "" if success is None else f"last success rate {success:.2f}")
        return None


def trainings_summary(
    stage: str, arms: Sequence[str], results: Sequence[TrainingResult], reused: Sequence[str] = ()
) -> tuple[str, ...]:
    """`finetune: pretrained: 5 seeds, final success 0.97 (0.96 to 0.98 over seeds), 1,003,520 steps`.

    `reused` names trainings that the store already had: `pretrained seed 1`.
    """
    lines = []
    if reused:
        lines.append(
            f"{stage}: {len(reused)} trainings with an equal content key were finished before and are not trained "
            f"again: {', '.join(reused)}"
        )
    for arm in dict.fromkeys(arms):
        chosen = [result for name, result in zip(arms, results, strict=True) if name == arm]
        success = [point_figures(result.final)[Metric.SUCCESS_RATE] for result in chosen]
        steps = sum(result.environment_steps for result in chosen)
        lines.append(
            f"{stage}: {arm}: {len(chosen)} seeds, success of the best checkpoint on fresh episodes "
            f"{sum(success) / len(success):.3f} ({min(success):.3f} to {max(success):.3f} over seeds), {steps:,} steps"
        )
    return tuple(lines)
