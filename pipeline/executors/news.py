"""What is heard of trainings, and what a place to train offers: the seam between stages and where trainings run."""

import traceback
from collections.abc import Hashable
from typing import Any, Protocol

from pipeline.errors import BadInput, Interrupted, disk_refusal, memory_refusal
from pipeline.learning.jobs import Emit, Job


class TrainingCrashed(Exception):
    """A training ended by a fault of ours or was killed; names the seed and holds the child's traceback."""


class TrainingKilled(TrainingCrashed, Interrupted):
    """A training was ended from outside: its process was killed, or its node was lost too often."""


class OutOfMemory(TrainingCrashed, OSError):
    """A training asked for more memory than there is: in one line, as what a machine refuses is told."""


# a TrainingEvent while it runs; its last: BadInput as it was raised, OSError when its disk refuses, TrainingCrashed for
# any other end, or else what `perform` came to
News = Any


class Executor(Protocol):
    """A place where trainings run, each under a key; whoever makes one closes it.

        executor.submit(key, job)             # while len(executor) < executor.at_once
        for key, news in executor.wait(): ...  # events in order; what is no event is a training's last

    Where a job runs changes no bit of what it comes to. `job.output` holds its policies when its end is heard.
    """

    at_once: int

    def __len__(self) -> int:
        """How many run."""

    def submit(self, key: Hashable, job: Job[Any]) -> None:
        """Start a training. That no more than `at_once` run is up to the caller."""

    def wait(self, seconds: float | None = None) -> list[tuple[Hashable, News]]:
        """News of any training; empty when `seconds` pass without."""

    def close(self, discard: bool = False) -> None:
        """End what still runs; with `discard` nothing of it is kept for the same command, which will not come."""


def attempt(job: Job[Any], emit: Emit) -> News:
    """Train in this process, with one thread; whatever ends it is returned, and is the same wherever that was."""
    try:
        import torch

        torch.set_num_threads(1)  # two trainings of two threads each are several times slower than of one
        return job.perform(emit)
    except BadInput as error:
        return type(error)(str(error))  # without what it came from, which may be of a user's own type
    except Exception as error:
        for refused, kind in ((disk_refusal(error), OSError), (memory_refusal(error), OutOfMemory)):
            if refused is not None:
                return kind(f"{job.name} could not go on: {refused}")
        return TrainingCrashed(f"{job.name} crashed: {traceback.format_exc()}")
