"""Runs nested in a stage's, written through the spool, and the thread that brings it to the store meanwhile."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from pipeline.errors import BadInput, shortened
from pipeline.names import Tag
from pipeline.tracking import operations
from pipeline.tracking.liveness import idle_until_now
from pipeline.tracking.operations import Batch
from pipeline.tracking.runs import get_run, points_of, search
from pipeline.tracking.spool import Spool, deliver
from pipeline.tracking.stage_run import StageRun, code_tags

PAUSE_SECONDS = 15.0  # between two rounds: fewer and larger requests cost less
RETRY_SECONDS = 1.0
PATIENCE_VARIABLE = "PIPELINE_PATIENCE_SECONDS"
PATIENCE_SECONDS = 60.0  # how long a finished training waits for a store that takes nothing
FAREWELL_SECONDS = 5.0  # how long one that failed or was interrupted does
LOOK_SECONDS = 0.02


class Forwarder:
    """The runs nested in a stage's, and a thread that delivers what they leave in the spool while the block lasts.

    When the block is left the store has everything, or it does not answer: then the stage's run goes on in the spool.
    Raises BadInput for what the store refused.
    """

    def __init__(self, stage_run: StageRun) -> None:
        self.stage_run = stage_run
        self._patience = _patience()
        self._spool = Spool()
        self._runs: list[str] = []
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self.trouble: str | None = None  # why nothing goes through

    def __enter__(self) -> "Forwarder":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                with contextlib.suppress(BadInput):
                    self.settle(FAREWELL_SECONDS)
            elif not self.settle(self._patience):
                self.stage_run.write_behind()
        finally:
            self._stop.set()
            self._wake.set()
            if self.trouble is None:  # otherwise it waits for an answer that may never come
                self._thread.join()
            self._spool.close()

    def child(self, name: str, tags: Mapping[str, Any], folder: Path | None = None) -> StageRun:
        """A run nested in the stage's, of the same code, with its record, of datasets only the one that is its own.

        It is written through the spool, its end too.

        A stage that goes on after an interruption goes on with the run of the same command, if it has one, and with all
        that this left in the spool: what it says again is recognised by what the store has.
        """
        stage_run, client = self.stage_run, self.stage_run.client
        run_id, known = None, Counter[tuple[str, int]]()
        if stage_run.continued and Tag.COMMAND in tags:
            its = {tag: str(tags[tag]) for tag in (Tag.COMMAND, Tag.ARM) if tags.get(tag) is not None}
            wanted = {MLFLOW_PARENT_RUN_ID: stage_run.run_id, **its}
            run_id = next((str(run.info.run_id) for run in search(client, wanted, limit=1, status=None)), None)
        if run_id is None:
            all_tags = {MLFLOW_RUN_NAME: name, MLFLOW_PARENT_RUN_ID: stage_run.run_id, **code_tags(), **tags}
            created = client.create_run(stage_run.experiment_id, tags=resolve_tags(operations.texts(all_tags)))
            run_id = str(created.info.run_id)
            own = tags.get(Tag.LINEAGE_DATASET)
            for operation in stage_run.record:
                if own is None or not isinstance(operation, operations.Input) or operation.name == own:
                    self._spool.append(run_id, operation)
            self._runs.append(run_id)
        else:
            self._runs.append(run_id)
            self.settle(self._patience)
            known = points_of(client, run_id)
            earlier = get_run(client, run_id, "training")
            if earlier.info.status != "FINISHED":
                client.update_run(run_id, status="RUNNING")
                Batch(tags={**idle_until_now(earlier), MLFLOW_RUN_NOTE: ""}).perform(client, run_id)
        return StageRun(
            client, run_id, stage_run.experiment_id, folder or stage_run.folder, spool=self._spool, known=known
        )

    def settle(self, patience: float) -> bool:
        """Wait until the store has everything of its runs; False when it takes nothing for `patience` seconds.

        Raises BadInput when it refuses something: that is kept in the spool.
        """
        # others' records may stand before these, and go first
        left, first, deadline = self._spool.waiting(self._runs), self._spool.first(), time.monotonic() + patience
        while left:
            self._wake.set()
            time.sleep(LOOK_SECONDS)
            before, (left, first) = (left, first), (self._spool.waiting(self._runs), self._spool.first())
            if (left, first) != before:
                deadline = time.monotonic() + patience
            elif time.monotonic() > deadline:
                return False
        reasons = self._spool.refusals(self._runs)
        if reasons:
            raise BadInput(
                f"the store refused {len(reasons)} records of these trainings: {reasons[0]}; they are kept in "
                f"{self._spool.folder}: mend the store, then python -m pipeline sync"
            )
        return True

    def _run(self) -> None:
        with contextlib.closing(Spool(self._spool.folder)) as spool:
            while not self._stop.is_set():
                self._wake.wait(PAUSE_SECONDS)
                self._wake.clear()
                try:
                    self.trouble = deliver(spool, self.stage_run.client)
                    spool.to_disk()
                except (BadInput, OSError) as error:  # the spool cannot be written: whoever appends next says so
                    self.trouble = str(error)
                if self.trouble is not None:
                    self._stop.wait(RETRY_SECONDS)


def _patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, str(PATIENCE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 1e6:
        raise BadInput(f"{PATIENCE_VARIABLE} = {shortened(text)}: it must be a number of seconds, 0 or more")
    return seconds
