"""Trainings side by side, wherever they run.

results = run_side_by_side(jobs, workers=2, on_event=lambda index, event: log(event))
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from pipeline.config.loading import executor_settings
from pipeline.config.task import GPU, ExecutorSettings
from pipeline.errors import BadInput, Interrupted, disk_refusal
from pipeline.executors.local import LocalProcesses
from pipeline.executors.news import Executor
from pipeline.learning.device import gpu_names
from pipeline.learning.jobs import Emit, Job, TrainingEvent

Result = TypeVar("Result")

LOOK_SECONDS = 1.0  # between looks at whether all are to stop


def run_side_by_side(
    jobs: Sequence[Job[Result]],
    workers: int,
    on_event: Callable[[int, TrainingEvent], object],
    on_result: Callable[[int, Result], None] = lambda index, result: None,
    stop: threading.Event | None = None,
    settings: ExecutorSettings | None = None,
) -> list[Result]:
    """Do all jobs of a task where it says, or where `settings` do. What they came to, in their order.

    On this machine `workers` of them run at a time, but one a GPU; 0: one after the other, in this process.
    `on_event(index of the job, event)` runs in this process, in order per job; `on_result` as soon as a job is done, so
    that what it came to outlives whatever ends the others. Raises BadInput as the training raised it, OSError when its
    disk refuses, `TrainingCrashed` for anything else, Interrupted once `stop` is set; the other trainings are then
    ended.
    """
    waiting = list(range(len(jobs)))
    results: dict[int, Result] = {}
    if settings is None:
        settings = executor_settings(jobs[0].task) if jobs else ExecutorSettings()
    if settings.kind == "local" and workers == 0:
        for index in waiting:
            emit: Emit = partial(on_event, index)  # type: ignore[assignment]  # nobody asks what it returns
            results[index] = jobs[index].perform(emit)
            on_result(index, results[index])
        return list(results.values())
    if jobs and jobs[0].device == GPU:
        workers = min(workers, len(gpu_names()))
    place, discard = executor(settings, workers), False
    try:
        while waiting or len(place):
            while waiting and len(place) < place.at_once:
                index = waiting.pop(0)
                place.submit(index, jobs[index])
            for key, news in place.wait(None if stop is None else LOOK_SECONDS):
                assert isinstance(key, int)
                if isinstance(news, TrainingEvent):
                    on_event(key, news)
                elif isinstance(news, Exception):
                    raise news
                else:
                    results[key] = news
                    on_result(key, news)
            if stop is not None and stop.is_set():
                raise Interrupted("the other trainings ended")
    except Exception as error:
        discard = not isinstance(error, Interrupted) and disk_refusal(error) is None  # else the same command goes on
        raise
    finally:
        place.close(discard)
    return [results[index] for index in range(len(jobs))]


def executor(settings: ExecutorSettings, workers: int) -> Executor:
    """The place that is asked for. Raises BadInput when what it needs is not installed, or does not answer."""
    if settings.kind == "local":
        return LocalProcesses(workers)
    from pipeline.executors.elsewhere import Elsewhere

    try:
        if settings.kind == "ray":
            from pipeline.executors.ray import RayCluster

            return Elsewhere(settings, RayCluster(settings))
        from pipeline.executors.slurm import SlurmCluster

        return Elsewhere(settings, SlurmCluster(settings))
    except ModuleNotFoundError as error:
        raise BadInput(
            f"executor.kind = {settings.kind!r}: the package {error.name!r} is not installed; "
            f"pip install 'imitation-pretraining-pipeline[{settings.kind}]'"
        ) from None
