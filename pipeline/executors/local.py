"""Trainings side by side on this machine: each in a process of its own with one thread, its events as they come.

    results = run_side_by_side(jobs, workers=2, on_event=lambda index, event: log(event))

What another place to train has to offer is what `LocalProcesses` does: submit, wait for news, cancel, say how many it
takes at once, close.

Each child has its own pipe, so that a killed one cannot damage what another says; it ends by itself when the parent
does. It leads a process group, so that whatever processes its environments start end with it. The processes come from a
fork server that has everything loaded (`preloaded`). Not here: what is done with the events.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Hashable, Sequence
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Final

from pipeline.envs.processes import fork_server, start
from pipeline.errors import BadInput, Interrupted, disk_refusal
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult

GRACE_SECONDS: Final = 5.0


class TrainingCrashed(Exception):
    """A training ended by a fault of ours or was killed; names the seed and holds the child's traceback."""


class TrainingKilled(TrainingCrashed, Interrupted):
    """A training's process was killed from outside."""


# all but the first are a training's last: what it came to, BadInput as the child raised it, OSError when its disk
# refuses, and any other end
News = TrainingEvent | TrainingResult | BadInput | OSError | TrainingCrashed


class LocalProcesses:
    """Trainings in processes of their own, each under a key; whoever makes one closes it."""

    def __init__(self, at_once: int) -> None:
        self.at_once = max(1, at_once)
        self._children: dict[Hashable, tuple[TrainingJob, ForkServerProcess, connection.Connection]] = {}

    def __len__(self) -> int:
        """How many run."""
        return len(self._children)

    def submit(self, key: Hashable, job: TrainingJob) -> None:
        """Start a training. That no more than `at_once` run is up to the caller."""
        context = fork_server()
        pipe, sender = context.Pipe(duplex=False)
        # not a daemon: those may have no processes of their own, which environments do have
        process = context.Process(target=_train, args=(job, sender), name=f"training-seed-{job.seed}", daemon=False)
        start(process)
        sender.close()
        self._children[key] = job, process, pipe

    def wait(self, seconds: float | None = None) -> list[tuple[Hashable, News]]:
        """At most one piece of news of every training; empty when `seconds` pass without any."""
        ready = connection.wait([pipe for _, _, pipe in self._children.values()], seconds)
        found: list[tuple[Hashable, News]] = []
        for key, (job, process, pipe) in list(self._children.items()):
            if pipe not in ready:
                continue
            try:
                news: News = pipe.recv()
            except (EOFError, ConnectionResetError):  # closed without a result
                process.join(GRACE_SECONDS)
                code = process.exitcode or 0
                how = f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"exited {process.exitcode}"
                text = f"its process {how}; if memory ran out, lower training.n_envs or workers"
                kind = TrainingKilled if code < 0 else TrainingCrashed
                news = kind(f"training of seed {job.seed} crashed: {text}")
            found.append((key, news))
            if not isinstance(news, TrainingEvent):
                self._end(key)
        return found

    def cancel(self, key: Hashable) -> None:
        """End a training before its time; nothing more is heard of it. One that has ended stays as it is."""
        if key in self._children:
            self._children[key][1].terminate()
            self._end(key)

    def close(self) -> None:
        """End what still runs."""
        for _, process, _ in self._children.values():
            process.terminate()
        for key in list(self._children):
            self._end(key)

    def _end(self, key: Hashable) -> None:
        _, process, pipe = self._children.pop(key)
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.pid is not None
        with contextlib.suppress(OSError):  # nobody is left, as it should be
            os.killpg(process.pid, signal.SIGKILL)
        pipe.close()


def run_side_by_side(
    jobs: Sequence[TrainingJob],
    workers: int,
    on_event: Callable[[int, TrainingEvent], object],
    on_result: Callable[[int, TrainingResult], None] = lambda index, result: None,
) -> list[TrainingResult]:
    """Train all jobs, `workers` at a time; `on_event(index of the job, event)` runs in this process, in order per job.

    `on_result` is called as soon as a job is done, so that what it came to outlives whatever ends the others. Raises
    BadInput as the child raised it, OSError when its disk refuses, `TrainingCrashed` for anything else; the other
    children are then ended.
    """
    waiting = list(range(len(jobs)))
    results: dict[int, TrainingResult] = {}
    with contextlib.closing(LocalProcesses(workers)) as executor:
        while waiting or len(executor):
            while waiting and len(executor) < executor.at_once:
                index = waiting.pop(0)
                executor.submit(index, jobs[index])
            for key, news in executor.wait():
                assert isinstance(key, int)
                if isinstance(news, TrainingEvent):
                    on_event(key, news)
                elif isinstance(news, TrainingResult):
                    results[key] = news
                    on_result(key, news)
                else:
                    raise news
    return [results[index] for index in range(len(jobs))]


def _train(job: TrainingJob, pipe: connection.Connection) -> None:
    """What a child does, from its first line to its last."""
    os.setpgrp()
    os.register_at_fork(after_in_child=pipe.close)  # else what an environment started would hold it open after our end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        import torch

        torch.set_num_threads(1)  # two trainings of two threads each are several times slower than of one
        from pipeline.learning.train import train

        last: Any = train(job, pipe.send)
    except BadInput as error:
        last = type(error)(str(error))  # without what it came from, which may be of a user's own type
    except Exception as error:
        refused = disk_refusal(error)
        what = f"could not go on: {refused}" if refused else f"crashed: {traceback.format_exc()}"
        last = (OSError if refused else TrainingCrashed)(f"training of seed {job.seed} {what}")
    pipe.send(last)
    pipe.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
