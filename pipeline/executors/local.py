"""Seeds side by side: each training in a process of its own with one thread, its events in the parent as they come.

    results = run_side_by_side(jobs, workers=2, on_event=lambda index, event: log(event))

or, when what is trained next depends on what came out, one by one:

    with TrainingPool() as pool:
        pool.start("a", job)
        for key, news in pool.wait(): ...  # TrainingEvent, TrainingResult, or an exception

Each child has its own pipe, so that a killed one cannot damage what another says; it ends by itself when the parent
does. It leads a process group, so that whatever processes its environments start end with it. The processes come from a
fork server that has everything imported. Not here: what is done with the events.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any, Self

from pipeline.errors import BadInput, Interrupted, disk_refusal
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# the first optimiser of a process imports torch._dynamo: once in the fork server instead of in every training
PRELOADED = ["pipeline.learning.ppo", "torch._dynamo"]
_GRACE_SECONDS = 5.0


class TrainingCrashed(Exception):
    """A training ended by a fault of ours or was killed; names the seed and holds the child's traceback."""


class TrainingKilled(TrainingCrashed, Interrupted):
    """A training's process was killed from outside."""


@dataclass(frozen=True)
class _Failure:
    kind: type[BadInput] | type[OSError] | type[TrainingCrashed]
    text: str


@dataclass
class _Child:
    seed: int
    process: ForkServerProcess
    pipe: connection.Connection


News = TrainingEvent | TrainingResult | BadInput | OSError | TrainingCrashed


class TrainingPool:
    """Trainings in processes of their own, each under a key; leaving the `with` block ends those that still run."""

    def __init__(self) -> None:
        self._children: dict[Hashable, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            child.process.terminate()
        for key in list(self._children):
            self._end(key)

    def __len__(self) -> int:
        """How many run."""
        return len(self._children)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._children

    def start(self, key: Hashable, job: TrainingJob) -> None:
        self._children[key] = _start(job)

    def stop(self, key: Hashable) -> None:
        """End a training before its time; nothing more is heard of it."""
        self._children[key].process.terminate()
        self._end(key)

    def wait(self, seconds: float | None = None) -> list[tuple[Hashable, News]]:
        """At most one piece of news of every training, in order per training; empty when `seconds` pass without any.

        A result, `BadInput` as the child raised it, `OSError` when its disk refuses, and `TrainingCrashed` for any
        other end are a training's last.
        """
        ready = connection.wait([child.pipe for child in self._children.values()], seconds)
        news: list[tuple[Hashable, News]] = []
        for key, child in list(self._children.items()):
            if child.pipe in ready:
                message = _receive(child)
                news.append((key, message))
                if not isinstance(message, TrainingEvent):
                    self._end(key)
        return news

    def _end(self, key: Hashable) -> None:
        child = self._children.pop(key)
        child.process.join(_GRACE_SECONDS)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        assert child.process.pid is not None
        with contextlib.suppress(OSError):  # nobody is left, as it should be
            os.killpg(child.process.pid, signal.SIGKILL)
        child.pipe.close()


def run_side_by_side(
    jobs: Sequence[TrainingJob],
    workers: int,
    on_event: Callable[[int, TrainingEvent], None],
    on_result: Callable[[int, TrainingResult], None] = lambda index, result: None,
) -> list[TrainingResult]:
    """Train all jobs, `workers` at a time; `on_event(index of the job, event)` runs in this process, in order per job.

    `on_result` is called as soon as a job is done, so that what it came to outlives whatever ends the others. Raises
    BadInput as the child raised it, OSError when its disk refuses, `TrainingCrashed` for anything else; the other
    children are then ended.
    """
    waiting = list(range(len(jobs)))
    results: dict[Hashable, TrainingResult] = {}
    with TrainingPool() as pool:
        while waiting or len(pool):
            while waiting and len(pool) < max(1, workers):
                index = waiting.pop(0)
                pool.start(index, jobs[index])
            for key, news in pool.wait():
                if isinstance(news, TrainingEvent):
                    assert isinstance(key, int)
                    on_event(key, news)
                elif isinstance(news, TrainingResult):
                    assert isinstance(key, int)
                    results[key] = news
                    on_result(key, news)
                else:
                    raise news
    return [results[index] for index in range(len(jobs))]


def _start(job: TrainingJob) -> _Child:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    # not a daemon: those may have no processes of their own, which environments do have
    process = context.Process(target=_child_main, args=(job, sender), name=f"training-seed-{job.seed}", daemon=False)
    with _one_thread_environment():
        process.start()
    sender.close()
    return _Child(job.seed, process, receiver)


def _receive(child: _Child) -> News:
    """The child's next message; a closed pipe without a result is a failure."""
    try:
        message = child.pipe.recv()
    except (EOFError, ConnectionResetError):
        child.process.join(_GRACE_SECONDS)
        code = child.process.exitcode
        killed = code is not None and code < 0
        how = f"was killed by signal {signal.Signals(-(code or 0)).name}" if killed else f"exited {code}"
        text = f"its process {how}; if memory ran out, lower training.n_envs or workers"
        message = _Failure(TrainingKilled if killed else TrainingCrashed, text)
    if not isinstance(message, _Failure):
        assert isinstance(message, TrainingEvent | TrainingResult)
        return message
    if issubclass(message.kind, BadInput):
        return message.kind(message.text)
    what = "could not go on" if message.kind is OSError else "crashed"
    return message.kind(f"training of seed {child.seed} {what}: {message.text}")


@contextlib.contextmanager
def _one_thread_environment() -> Iterator[None]:
    """The fork server takes its environment from us when it starts; libraries read these once, when they load."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _child_main(job: TrainingJob, pipe: connection.Connection) -> None:
    os.setpgrp()
    os.register_at_fork(after_in_child=pipe.close)  # else what an environment started would hold it open after our end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        from pipeline.executors.threads import one_thread

        one_thread()
        from pipeline.learning.ppo import train

        message: Any = train(job, pipe.send)
    except BadInput as error:
        message = _Failure(type(error), str(error))
    except Exception as error:
        refused = disk_refusal(error)
        message = _Failure(OSError, refused) if refused else _Failure(TrainingCrashed, traceback.format_exc())
    pipe.send(message)
    pipe.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
