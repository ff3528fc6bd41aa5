"""Trainings on a Ray cluster: Ray places them, and begins them again elsewhere when their node or worker is lost.

A worker of Ray's does one training after the other, each in a process of its own that has everything loaded.
"""

import os
import threading
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RaySystemError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

from pipeline.config.task import GPU, ExecutorSettings
from pipeline.errors import BadInput
from pipeline.executors.elsewhere import Ended, train_on_node
from pipeline.executors.news import TrainingCrashed, TrainingKilled
from pipeline.learning.jobs import Job

LOST: Final = (
    LocalRayletDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, RaySystemError, WorkerCrashedError,
)  # fmt: skip
CONNECTING: Final = threading.Lock()  # once a process; the trials of a sweep are threads


class RayCluster:
    """Jobs as tasks of the cluster that RAY_ADDRESS names, or of the one that this machine is a node of."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self._settings = settings
        with CONNECTING:
            if not ray.is_initialized():
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                try:
                    ray.init(address="auto", log_to_driver=False, configure_logging=False)
                except (ConnectionError, RuntimeError, ValueError) as error:
                    where = os.environ.get("RAY_ADDRESS", "this machine")
                    raise BadInput(
                        f"executor.kind = 'ray': no cluster answers at {where} ({error}); "
                        "start one (ray start --head), or name one in RAY_ADDRESS"
                    ) from None
        try:
            # `max_retries` is of nodes and workers that are lost; what a training raises is a value here
            self._begin = ray.remote(max_retries=settings.retries, **settings.options)(train_on_node)
        except (ValueError, TypeError) as error:
            raise BadInput(f"executor.options: {error}") from None
        self._tasks: dict[ray.ObjectRef, tuple[Hashable, str]] = {}

    def begin(self, key: Hashable, job: Job[Any], place: Path) -> None:
        """Begin a job. One that a process before this one had begun ended with that process."""
        begin = self._begin
        if job.device.startswith(GPU) and "num_gpus" not in self._settings.options:
            begin = begin.options(num_gpus=1)
        self._tasks[begin.remote(job, place, os.getcwd())] = key, job.name

    def ended(self, seconds: float) -> list[tuple[Hashable, Ended]]:
        """Jobs whose end has become known within so many seconds."""
        found = []
        if not self._tasks:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=seconds)
        for task in ready:
            key, name = self._tasks.pop(task)
            try:
                ended = ray.get(task)
            except LOST as error:
                ended = Ended(TrainingKilled(f"{name}: its nodes were lost too often: {error}"), 0)
            except (RuntimeEnvSetupError, TaskUnschedulableError) as error:
                ended = Ended(BadInput(f"executor.options: {error}"), 0)
            except RayError as error:
                ended = Ended(TrainingCrashed(f"{name} crashed: {error}"), 0)
            found.append((key, ended))
        return found

    def cancel(self, key: Hashable) -> None:
        """End a job, and whoever works on it."""
        for task, (other, _) in list(self._tasks.items()):
            if other == key:
                del self._tasks[task]
                ray.cancel(task, force=True)
