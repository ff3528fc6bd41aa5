"""Seeds side by side: each training in a process of its own with one thread, its events in the parent as they come.

    results = run_side_by_side(jobs, workers=2, on_event=lambda index, event: log(event))

Each child has its own pipe, so that a killed one cannot damage what another says; it ends by itself when the parent
does. The processes come from a fork server that has everything imported. Not here: what is done with the events.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
PRELOADED = ["pipeline.learning.ppo"]
_GRACE_SECONDS = 5.0


class TrainingCrashed(Exception):
    """A training ended by a fault of ours or was killed; names the seed and holds the child's traceback."""


@dataclass(frozen=True)
class _Failure:
    bad_input: bool
    text: str


@dataclass
class _Child:
    index: int
    seed: int
    process: ForkServerProcess
    pipe: connection.Connection


def run_side_by_side(
    jobs: Sequence[TrainingJob], workers: int, on_event: Callable[[int, TrainingEvent], None]
) -> list[TrainingResult]:
    """Train all jobs, `workers` at a time; `on_event(index of the job, event)` runs in this process, in order per job.

    Raises BadInput as the child raised it, `TrainingCrashed` for anything else; the other children are then ended.
    """
    waiting = list(enumerate(jobs))
    results: dict[int, TrainingResult] = {}
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < max(1, workers):
                index, job = waiting.pop(0)
                running.append(_start(index, job))
            for child in _with_news(running):
                message = _receive(child)
                if isinstance(message, TrainingEvent):
                    on_event(child.index, message)
                elif isinstance(message, TrainingResult):
                    results[child.index] = message
                    running.remove(child)
                    _end(child)
                else:
                    raise _as_error(child, message)
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            _end(child)
    return [results[index] for index in range(len(jobs))]


def _start(index: int, job: TrainingJob) -> _Child:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child_main, args=(job, sender), name=f"training-seed-{job.seed}", daemon=True)
    with _one_thread_environment():
        process.start()
    sender.close()
    return _Child(index, job.seed, process, receiver)


def _with_news(running: Sequence[_Child]) -> list[_Child]:
    ready = connection.wait([child.pipe for child in running])
    return [child for child in running if child.pipe in ready]


def _receive(child: _Child) -> Any:
    """The child's next message; a closed pipe without a result is a failure."""
    try:
        return child.pipe.recv()
    except (EOFError, ConnectionResetError):
        child.process.join(_GRACE_SECONDS)
        code = child.process.exitcode
        how = (
            f"was killed by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exited {code}"
        )
        return _Failure(False, f"its process {how}; if memory ran out, lower training.n_envs or workers")


def _as_error(child: _Child, failure: _Failure) -> Exception:
    if failure.bad_input:
        return BadInput(failure.text)
    return TrainingCrashed(f"training of seed {child.seed} crashed: {failure.text}")


def _end(child: _Child) -> None:
    child.process.join(_GRACE_SECONDS)
    if child.process.is_alive():
        child.process.kill()
        child.process.join()
    child.pipe.close()


@contextmanager
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        from pipeline.learning.threads import one_thread

        one_thread()
        from pipeline.learning.ppo import train

        message: Any = train(job, pipe.send)
    except BadInput as error:
        message = _Failure(True, str(error))
    except Exception:
        message = _Failure(False, traceback.format_exc())
    pipe.send(message)
    pipe.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
