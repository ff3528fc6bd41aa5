"""Whether the process behind a run still lives; what becomes of runs whose process is gone.

A run of a stage names its process (machine, number, start) and gives a sign of life every minute. On this machine the
process table answers; of a process elsewhere only the last sign does, so the clocks of machines that share a store must
agree to a few minutes. A run that ended in order names no process any more, or is FINISHED.
"""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
)
from sqlalchemy.exc import SQLAlchemyError

from pipeline.names import STAGES, Tag

BEAT_SECONDS = 60.0
SILENT_SECONDS = 600.0  # after which a process elsewhere counts as gone
START_TOLERANCE = 5.0  # seconds by which the recorded start of a living process may differ
# after which no stage comes any more to a run that `mlflow run` made: it may make an environment
UNCLAIMED_SECONDS = 3600.0
NUMBER = re.compile("[0-9]{1,10}")  # of a process, or of seconds: a tag is input like any other
START = re.compile("t[0-9]{1,12}|[0-9]{1,10}")  # of a process, in ticks since boot or in seconds
INTERRUPTED = "interrupted"  # instead of a process: it ended from outside, and said so


@cache
def machine() -> str:
    """Equal for two processes exactly when they see each other: host, boot and process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot, space = str(round(psutil.boot_time() / 60)), ""
    return f"{socket.gethostname()}/{boot}/{space}"


def this_process() -> str:
    """What `has_ended` reads: machine, number, and start."""
    try:
        started = f"t{_ticks(os.getpid())}"
    except OSError:  # not Linux
        started = f"{psutil.Process().create_time():.0f}"
    return f"{machine()} {os.getpid()} {started}"


def _ticks(number: int) -> int:
    """From boot to the start of a process, which no correction of the clock moves. Raises OSError."""
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])  # `starttime` of proc(5)


def has_ended(process: str) -> bool | None:
    """Whether a process of this machine is gone; None of one elsewhere, and of what is no process."""
    where, number, started = ("", "", "", *process.rsplit(" ", 2))[-3:]
    if where != machine() or not (NUMBER.fullmatch(number) and START.fullmatch(started)):
        return None
    try:
        found = psutil.Process(int(number))
        if started.startswith("t"):
            same = f"t{_ticks(found.pid)}" == started
        else:  # another system's, or an earlier version's
            same = abs(found.create_time() - int(started)) < START_TOLERANCE
        return not same or found.status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):  # the latter while it goes
        return True


def signs_of_life() -> dict[str, str]:
    """Tags that say which process a run belongs to, and that it lives now."""
    return {Tag.PROCESS: this_process(), Tag.ALIVE: f"{time.time():.0f}"}


def is_gone(run: Run) -> bool:
    """The process that a run names does not live any more; False for a run that names none."""
    process, alive = run.data.tags.get(Tag.PROCESS, ""), run.data.tags.get(Tag.ALIVE, "")
    if process == INTERRUPTED:
        return True
    _, number, started = ("", "", "", *process.rsplit(" ", 2))[-3:]
    if not (NUMBER.fullmatch(number) and START.fullmatch(started) and NUMBER.fullmatch(alive)):
        return False
    ended = has_ended(process)
    return time.time() - int(alive) > SILENT_SECONDS if ended is None else ended


def idle_seconds(run: Run) -> int:
    """For how long nobody worked on a run between its start and its end."""
    text = run.data.tags.get(Tag.IDLE, "")
    return int(text) if NUMBER.fullmatch(text) else 0


def idle_until_now(run: Run) -> dict[str, str]:
    """The tag of a run that ended and is gone on with now: `idle_seconds` with the time since its end."""
    ended = run.info.end_time
    return {} if ended is None else {Tag.IDLE: f"{idle_seconds(run) + max(0, time.time() - ended / 1000):.0f}"}


@contextlib.contextmanager
def beating(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Give a sign of life every minute, from a thread: it costs the work nothing, and a store that is away no error."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(MlflowException, SQLAlchemyError, OSError):
                client.set_tag(run_id, Tag.ALIVE, signs_of_life()[Tag.ALIVE])

    threading.Thread(target=beat, name="sign-of-life", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def close_stale(client: MlflowClient, running: list[Run], project: str) -> list[str]:
    """End the runs, of those that are RUNNING, whose process is gone as KILLED, with a note; returns their ids.

    Runs of single seeds name no process: they go with the run they are nested in, also when that has ended in order
    without them (what the spool delivers later says it better); so does one that `mlflow run` made for a command that
    goes on under an earlier run. Those that `mlflow run` made and no stage came to end too, if they are of `project`:
    others have projects with a `main` in the same store.
    """
    known = {run.info.run_id: run for run in running}
    for run in running:
        tags, age = run.data.tags, time.time() - run.info.start_time / 1000
        ours = tags.get(MLFLOW_SOURCE_NAME) == project and tags.get(MLFLOW_PROJECT_ENTRY_POINT) in STAGES
        if not ours or {Tag.STAGE, Tag.CONTINUES} & tags.keys() or age <= UNCLAIMED_SECONDS:
            continue
        client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, "killed: mlflow run made it, and no stage came to it")
        client.set_terminated(run.info.run_id, status="KILLED")
    stale = [run for run in running if is_gone(owner := _owner(client, run, known)) or _left_behind(run, owner)]
    ended = []
    for run in sorted(stale, key=lambda run: Tag.PROCESS in run.data.tags):  # the nested ones first
        owner = _owner(client, run, known)
        alive, process = owner.data.tags.get(Tag.ALIVE, ""), owner.data.tags[Tag.PROCESS]
        seen = datetime.fromtimestamp(int(alive) if NUMBER.fullmatch(alive) else run.info.start_time // 1000, UTC)
        where, _, number = process.rpartition(" ")[0].rpartition(" ")
        gone = f"its process {number} on {where.partition('/')[0]} is gone"
        why = gone if where and is_gone(owner) else "its stage has ended"
        goes_on = "; the same command goes on" if is_gone(owner) and owner.info.status != "FINISHED" else ""
        if client.get_run(run.info.run_id).info.status != "RUNNING":  # it has ended meanwhile
            continue
        note = f"killed: {why}, last sign of life {seen:%Y-%m-%d %H:%M} UTC{goes_on}"
        client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, note)
        client.set_terminated(run.info.run_id, status="KILLED", end_time=int(seen.timestamp() * 1000))
        ended.append(run.info.run_id)
    return ended


def _left_behind(run: Run, owner: Run) -> bool:
    """A run of a single seed whose stage, of ours, has ended."""
    nested = run.data.tags.get(MLFLOW_PARENT_RUN_ID) == owner.info.run_id
    return nested and Tag.PROCESS in owner.data.tags and owner.info.status in ("FINISHED", "FAILED")


def _owner(client: MlflowClient, run: Run, known: dict[str, Run]) -> Run:
    """The run that names the process: itself, the one that goes on in its place, or the one it is nested in."""
    parent = run.data.tags.get(Tag.CONTINUES) or run.data.tags.get(MLFLOW_PARENT_RUN_ID)
    if Tag.PROCESS in run.data.tags or parent is None:
        return run
    if parent not in known:
        with contextlib.suppress(MlflowException):  # a parent that was deleted says nothing
            known[parent] = client.get_run(parent)
    return known.get(parent, run)
