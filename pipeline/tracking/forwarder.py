"""From the outbox to the store: a thread beside the trainings, and `python -m pipeline sync` for what was left.

Delivery may be repeated: every operation has the same effect twice as once. Of all processes of a machine one at a
time forwards. While the store does not answer, everything waits; what it refuses is kept and passed over.
"""

import contextlib
import fcntl
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import BadInput, shortened
from pipeline.names import Tag
from pipeline.tracking import candidates, models, operations
from pipeline.tracking.operations import tag_text
from pipeline.tracking.outbox import Outbox, Record, RunOutbox, outbox_folder
from pipeline.tracking.runs import StageRun, code_tags, get_run, search
from pipeline.tracking.store import connect, refuses

PAUSE_SECONDS = 10.0  # between two rounds: fewer and larger requests cost less
RETRY_SECONDS = 1.0
PATIENCE_VARIABLE = "PIPELINE_PATIENCE_SECONDS"
PATIENCE_SECONDS = 60.0  # how long a finished training waits for a store that takes nothing
FAREWELL_SECONDS = 5.0  # how long one that failed or was interrupted does
LOOK_SECONDS = 0.02
RECORDS_AT_ONCE = 2_000


class Forwarder:
    """A thread that delivers what runs leave in the outbox, for as long as the `with` block lasts."""

    def __init__(self, client: MlflowClient) -> None:
        self._outbox = Outbox()
        self._client = client
        self._runs: list[str] = []
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self.trouble: str | None = None  # why nothing goes through

    def __enter__(self) -> "Forwarder":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._wake.set()
        if self.trouble is None:  # otherwise it waits for an answer that may never come
            self._thread.join()
        self._outbox.close()

    def child(self, stage_run: StageRun, name: str, tags: Mapping[str, Any], folder: Path | None = None) -> StageRun:
        """A run nested in a stage's, of the same code, with its record. It is written through the outbox, its end too.

        A stage that goes on after an interruption goes on with the run of the same command, if it has one.
        """
        run_id = self._interrupted(stage_run, tags) or self._created(stage_run, name, tags)
        self._runs.append(run_id)
        outbox = RunOutbox(self._outbox, run_id)
        return StageRun(stage_run.client, run_id, stage_run.experiment_id, folder or stage_run.folder, outbox)

    def _created(self, stage_run: StageRun, name: str, tags: Mapping[str, Any]) -> str:
        all_tags = {MLFLOW_RUN_NAME: name, MLFLOW_PARENT_RUN_ID: stage_run.run_id, **code_tags(), **tags}
        created = stage_run.client.create_run(
            stage_run.experiment_id, tags={key: tag_text(value) for key, value in all_tags.items()}
        )
        for operation in stage_run.record:
            self._outbox.append(created.info.run_id, operation)
        return str(created.info.run_id)

    def _interrupted(self, stage_run: StageRun, tags: Mapping[str, Any]) -> str | None:
        """The run that an interrupted stage had for the same command, with all it left in the outbox; open again."""
        if not stage_run.continued or Tag.COMMAND not in tags:
            return None
        wanted = {MLFLOW_PARENT_RUN_ID: stage_run.run_id, Tag.COMMAND: str(tags[Tag.COMMAND])}
        found = search(stage_run.client, wanted, limit=1, status=None)
        if not found:
            return None
        run_id = str(found[0].info.run_id)
        self._runs.append(run_id)
        self.settle(_patience())
        if get_run(stage_run.client, run_id, "training").info.status != "FINISHED":
            stage_run.client.update_run(run_id, status="RUNNING")
            stage_run.client.set_tag(run_id, MLFLOW_RUN_NOTE, "")
        return run_id

    def settle(self, patience: float) -> bool:
        """Wait until the store has everything of its runs; False when it takes nothing for `patience` seconds.

        Raises BadInput when it refuses something: that is kept in the outbox.
        """
        left = self._outbox.waiting(self._runs)
        deadline = time.monotonic() + patience
        while left:
            self._wake.set()
            time.sleep(LOOK_SECONDS)
            now = self._outbox.waiting(self._runs)
            if now < left:
                left, deadline = now, time.monotonic() + patience
            elif time.monotonic() > deadline:
                return False
        reasons = self._outbox.refusals(self._runs)
        if reasons:
            raise BadInput(
                f"the store refused {len(reasons)} records of these trainings: {reasons[0]}; they are kept in "
                f"{self._outbox.folder}: mend the store, then python -m pipeline sync"
            )
        return True

    def _run(self) -> None:
        outbox = Outbox(self._outbox.folder)
        while not self._stop.is_set():
            self._wake.wait(PAUSE_SECONDS)
            self._wake.clear()
            try:
                self.trouble = forward(outbox, self._client)
                outbox.to_disk()
            except (BadInput, OSError) as error:  # the outbox itself cannot be written: whoever appends next says so
                self.trouble = str(error)
            if self.trouble is not None:
                self._stop.wait(RETRY_SECONDS)
        outbox.close()


@contextlib.contextmanager
def forwarding(stage_run: StageRun) -> Iterator[Forwarder]:
    """A forwarder for the runs of trainings that belong to a stage's.

    When the block is left the store has everything, or it does not answer: then the stage's run goes on in the outbox.
    """
    patience = _patience()
    with Forwarder(stage_run.client) as forwarder:
        try:
            yield forwarder
        except BaseException:
            with contextlib.suppress(BadInput):
                forwarder.settle(FAREWELL_SECONDS)
            raise
        if not forwarder.settle(patience):
            stage_run.write_behind()


def _patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, str(PATIENCE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 1e6:
        raise BadInput(f"{PATIENCE_VARIABLE} = {shortened(text)}: it must be a number of seconds, 0 or more")
    return seconds


@contextlib.contextmanager
def child_run(forwarder: Forwarder, stage_run: StageRun, name: str, tags: Mapping[str, Any]) -> Iterator[StageRun]:
    """A nested run with a folder of its own, that ends with the block: FAILED when the work in it raises."""
    folder = stage_run.folder / name
    folder.mkdir()
    run = forwarder.child(stage_run, name, tags, folder)
    try:
        yield run
    except BaseException as error:
        run.describe(f"not finished: {type(error).__name__}: {error}"[:500])
        run.close("FAILED")
        raise
    run.close("FINISHED")


def forward(outbox: Outbox, client: MlflowClient) -> str | None:
    """Deliver everything that waits. None when nothing stood in the way, else what did: the rest waits on."""
    with _alone(outbox.folder) as alone:
        while alone and (records := outbox.next(RECORDS_AT_ONCE)):
            by_run = sorted(records, key=lambda record: record.run_id)  # stable: a run's stay in their order
            for run_id, group in groupby(by_run, key=lambda record: record.run_id):
                for chunk in _chunks(list(group)):
                    try:
                        _deliver(outbox, client, run_id, chunk)
                    except (MlflowException, SQLAlchemyError, OSError) as error:
                        return shortened(str(error), 300)
    return None


def _chunks(records: Sequence[Record]) -> list[list[Record]]:
    """Metrics that follow one another go together, as many as fit into a request; anything else alone."""
    chunks: list[list[Record]] = []
    points = 0
    for record in records:
        size = len(record.operation["points"]) if record.operation["do"] == "metrics" else 0
        if size and points and points + size <= operations.METRIC_BATCH:
            chunks[-1].append(record)
            points += size
        else:
            chunks.append([record])
            points = size
    return chunks


def _deliver(outbox: Outbox, client: MlflowClient, run_id: str, chunk: list[Record]) -> None:
    """Raises what the store raises when it gives no answer."""
    operation = chunk[0].operation
    if len(chunk) > 1:
        operation = {**operation, "points": [point for record in chunk for point in record.operation["points"]]}
    try:
        match operation["do"]:
            case "policy":
                outbox.trying(chunk[0])
                models.store_policy(client, run_id, operation, again=chunk[0].tried)
            case "candidate":
                outbox.trying(chunk[0])
                candidates.store_candidate(client, run_id, operation, again=chunk[0].tried)
            case _:
                operations.perform(client, run_id, operation)
    except Exception as error:
        may_pass = isinstance(error, MlflowException | SQLAlchemyError | OSError)
        if may_pass and not refuses(error) and not isinstance(error, FileNotFoundError):
            raise
        if len(chunk) > 1:  # one of them may spoil the others
            for record in chunk:
                _deliver(outbox, client, run_id, [record])
        else:
            reason = str(error) if may_pass or isinstance(error, BadInput) else traceback.format_exc(limit=-3)
            outbox.refuse(chunk[0].id, f"{operation['do']} of run {run_id}: {' '.join(reason.split())}"[:1_000])
    else:
        outbox.delivered(chunk)


@dataclass(frozen=True)
class Delivery:
    """What `sync` came to."""

    delivered: int
    waiting: int
    refusals: tuple[str, ...]
    folder: Path
    trouble: str | None

    @property
    def done(self) -> bool:
        return not self.waiting and not self.refusals

    def lines(self) -> list[str]:
        """For people."""
        if self.done:
            return [f"sync: {self.delivered} records delivered, nothing waits"]
        why = f": {self.trouble}" if self.trouble else ""
        return [
            f"sync: {self.delivered} records delivered, {self.waiting} wait, {len(self.refusals)} refused "
            f"(kept in {self.folder}){why}",
            *(f"  - {reason}" for reason in dict.fromkeys(self.refusals)),
        ]


def sync() -> Delivery:
    """Deliver what waits for the configured store, what it refused before included. Raises BadInput without a store."""
    client = connect()
    outbox = Outbox()
    outbox.sweep()
    outbox.try_refused_again()
    before = outbox.waiting()
    trouble = forward(outbox, client)
    refusals = tuple(outbox.refusals())
    left = outbox.waiting()
    outbox.close()
    if left and trouble is None:
        trouble = "another process delivers them"
    return Delivery(before - left - len(refusals), left, refusals, outbox.folder, trouble)


def deliver_leftovers() -> None:
    """Deliver what earlier processes left for the configured store; a store that does not answer keeps it waiting."""
    if not (outbox_folder() / "outbox.db").exists():
        return
    outbox = Outbox()
    outbox.sweep()
    if outbox.waiting():
        with contextlib.suppress(BadInput):  # whoever opens a run next says that the store cannot be used
            forward(outbox, connect())
    outbox.close()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """True when nobody else forwards from this folder; the lock dies with its holder."""
    with (folder / "forwarder.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
