"""Trainings on this machine: each in a process of its own with one thread, its events as they come.

Each child has its own pipe, so that a killed one cannot damage what another says; it ends by itself when the parent
does. It leads a process group, so that whatever processes its environments start end with it. The processes come from a
fork server that has everything loaded (`preloaded`), or are forks of this one. Not here: what is done with the events.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Hashable
from functools import cache
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from queue import Queue
from typing import Any, Final

from pipeline.config.task import GPU
from pipeline.envs.processes import fork_server, start
from pipeline.executors.news import News, TrainingCrashed, TrainingKilled, attempt
from pipeline.learning.device import gpu_names
from pipeline.learning.jobs import Job, TrainingEvent

GRACE_SECONDS: Final = 5.0
VISIBLE_GPUS: Final = "CUDA_VISIBLE_DEVICES"


class LocalProcesses:
    """Trainings in processes of their own."""

    def __init__(self, at_once: int, forks: bool = False) -> None:
        """`forks`: of this process, which must have no threads, instead of the fork server's."""
        self.at_once = max(1, at_once)
        self._context = multiprocessing.get_context("fork") if forks else fork_server()
        self._children: dict[Hashable, tuple[Job[Any], BaseProcess, connection.Connection]] = {}
        self._gpus: dict[Hashable, str] = {}

    def __len__(self) -> int:
        """How many run."""
        return len(self._children)

    def submit(self, key: Hashable, job: Job[Any]) -> None:
        """Start a training, on a GPU that no other has. That no more than `at_once` run is up to the caller."""
        gpu = None
        if job.device == GPU and gpu_names():
            self._gpus[key] = gpu = free_gpus().get()
        pipe, sender = self._context.Pipe(duplex=False)
        # not a daemon: those may have no processes of their own, which environments do have
        process = self._context.Process(target=_train, args=(job, sender, gpu), name=job.name, daemon=False)
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
                # 255 is multiprocessing's own, where the fork server was killed too and nobody knows
                kind = TrainingKilled if code < 0 or code == 255 else TrainingCrashed
                news = kind(f"{job.name} crashed: {text}")
            found.append((key, news))
            if not isinstance(news, TrainingEvent):
                self._end(key)
        return found

    def close(self, discard: bool = False) -> None:
        """End what still runs; of it nothing lies here."""
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
        if key in self._gpus:
            free_gpus().put(self._gpus.pop(key))


@cache
def free_gpus() -> "Queue[str]":
    """Those that no training of this process has, whichever thread asks: trials of a sweep are threads."""
    free: Queue[str] = Queue()
    visible = os.environ.get(VISIBLE_GPUS)
    for index in range(len(gpu_names())):
        free.put(visible.split(",")[index] if visible else str(index))
    return free


def _train(job: Job[Any], pipe: connection.Connection, gpu: str | None) -> None:
    """What a child does, from its first line to its last; `gpu`: the only one that it sees."""
    if gpu is not None:
        os.environ[VISIBLE_GPUS] = gpu
    os.setpgrp()
    os.register_at_fork(after_in_child=pipe.close)  # else what an environment started would hold it open after our end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends it to every process of a job, for the parent
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pipe.send(attempt(job, pipe.send))
    pipe.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
