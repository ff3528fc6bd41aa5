"""Progress of trainings that run side by side: one bar on a terminal, one line now and then elsewhere, and films."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tqdm import tqdm

from pipeline.errors import printable, say
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.names import EVAL_PREFIX, Metric
from pipeline.report.films import check_drawable, film_of
from pipeline.report.trainings import input_warnings
from pipeline.tasks import Task

LINE_EVERY_SECONDS = 15.0


class TrainingProgress:
    """Environment steps done over all jobs, and the newest success rate seen.

    with TrainingProgress("finetune", jobs) as progress:
        run_side_by_side(jobs, workers, progress.on_event)
    """

    def __init__(self, title: str, jobs: Sequence[TrainingJob]) -> None:
        for job in jobs:
            task = Task(job.task, job.training.environment, job.training.use_camera)
            check_drawable(task, "training.visualize_every", job.training.visualize_every)
        for line in input_warnings(task) if jobs else ():  # all are of one task
            say(f"{title}:{line.removeprefix(' ')}", sys.stderr)
        self._title, self._jobs = title, jobs
        self._steps = [0] * len(jobs)
        self._success: float | None = None
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=sum(job.budget for job in jobs),
            desc=title,
            unit="step",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def on_event(self, index: int, event: TrainingEvent) -> None:
        """Take note of what job `index` says; draw the policy it shows."""
        if event.kind == "policy":
            film_of(self._jobs[index], event)
            return
        if event.kind == "note":
            self._bar.write(printable(f"{self._title} seed {self._jobs[index].seed}: {event.text}"), file=sys.stderr)
        done = min(event.timestep, self._jobs[index].budget)
        self._bar.update(max(0, done - self._steps[index]))
        self._steps[index] = max(self._steps[index], done)
        success = event.metrics.get(f"{EVAL_PREFIX}{Metric.SUCCESS_RATE}")
        if success is not None:
            self._success = success
            self._bar.set_postfix_str(f"success {success:.2f}")
        if self._bar.disable and time.monotonic() - self._last_line > LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            say(self.line(), sys.stderr)

    def line(self) -> str:
        """`finetune: 1,200,000 of 4,000,000 steps (30 %), last success rate 0.85`."""
        total, done = sum(job.budget for job in self._jobs), sum(self._steps)
        success = "" if self._success is None else f", last success rate {self._success:.2f}"
        return f"{self._title}: {done:,} of {total:,} steps ({done / total:.0%}){success}"
