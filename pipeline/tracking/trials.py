"""Trials of a sweep in the store: a nested run each, which fills while the trial trains and says how it ended."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import mlflow
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from pipeline.config.loading import flatten
from pipeline.errors import BadInput
from pipeline.files import sqlite_file
from pipeline.learning.jobs import TrainingEvent
from pipeline.names import CONFIG_PARAM_PREFIX, SWEEP_TRIAL, Artifact, Tag
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.runs import StageRun, get_run

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "lost": "FAILED"}


@dataclass
class TrialRun:
    """The nested run of a trial."""

    run: StageRun
    seeds: Sequence[int]

    @classmethod
    def start(
        cls,
        parent: StageRun,
        forwarder: Forwarder,
        task: str,
        study: str,
        number: int,
        values: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> Self:
        """Open the run, with the values that were chosen as its parameters."""
        tags = {
            Tag.STAGE: SWEEP_TRIAL,
            Tag.TASK: task,
            Tag.STUDY: study,
            Tag.TRIAL: number,
            Tag.SEED: " ".join(str(seed) for seed in seeds),
        }
        run = forwarder.child(parent, f"trial-{number}", tags)
        run.params({f"{CONFIG_PARAM_PREFIX}{key}": value for key, value in flatten(dict(values)).items()})
        return cls(run, seeds)

    def on_event(self, seed: int, event: TrainingEvent) -> None:
        """Keep a training's metrics; with several seeds each has its own names."""
        prefix = "" if len(self.seeds) == 1 else f"seed_{seed}/"
        if event.metrics:
            self.run.metric_series([(f"{prefix}{name}", v, event.timestep) for name, v in event.metrics.items()])

    def finish(
        self,
        state: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, Any],
        evaluations: Sequence[Mapping[str, Any]],
        reason: str | None,
    ) -> None:
        """Say how the trial ended, and close its run: FINISHED, KILLED when it was pruned, or FAILED."""
        self.run.metrics(metrics)
        self.run.tag({Tag.TRIAL_STATE: state, **tags, **({} if reason is None else {MLFLOW_RUN_NOTE: reason})})
        self.run.text(json.dumps(evaluations, sort_keys=True) + "\n", Artifact.EVALUATIONS)
        self.run.close(STATUS[state])


def close_lost(client: MlflowClient, run_id: str | None, reason: str) -> None:
    """End the run of a trial that a dead process did not end; one in another store is none of ours."""
    try:
        run = None if run_id is None else get_run(client, run_id, "trial")
    except BadInput:
        return
    if run is not None and Tag.TRIAL_STATE not in run.data.tags:
        run_id = run.info.run_id
        client.set_tag(run_id, MLFLOW_RUN_NOTE, reason)
        client.set_tag(run_id, Tag.TRIAL_STATE, "lost")
        client.set_terminated(run_id, status="FAILED")


def refuse_tracking_store(storage: str) -> None:
    """A study keeps its own tables, and its own version of them: it cannot share a database with the runs.

    Raises BadInput.
    """
    uri = mlflow.get_tracking_uri()
    same_file = sqlite_file(uri) is not None and sqlite_file(uri) == sqlite_file(storage)
    if storage == uri or same_file:
        raise BadInput(f"storage {storage!r} is the tracking store; give the study a database of its own")
