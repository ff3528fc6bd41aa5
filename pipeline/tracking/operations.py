"""What can be written to a run, as plain data: done at once, or kept in the spool and done later.

An operation can be done twice with the same effect as once: points carry the time at which they were measured, which
together with name, step and value identifies them in the store; tags, parameters and files replace themselves; a policy
or a candidate that was begun is completed.
"""

import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from pipeline.config.base import configuration
from pipeline.errors import BadInput, shortened
from pipeline.files import scratch
from pipeline.names import OUTPUT_PREFIX, Tag
from pipeline.policies import policy_digest
from pipeline.tracking.packing import pack
from pipeline.tracking.registry import register_candidate
from pipeline.tracking.store import pages

AT_ONCE = {"metrics": 1_000, "params": 100, "tags": 100}  # what MLflow takes in one request
MAX_PARAM_LENGTH = 6_000

Point = tuple[str, float, int, int]  # name, value, step, milliseconds since 1970


def _inside(place: str) -> str:
    """MLflow refuses paths outside a run's artifacts as if that might pass."""
    if place.startswith("/") or str(PurePosixPath(place)) != place or {".", ".."} & {*place.split("/")}:
        raise ValueError("it is no path inside the artifacts of a run")
    return place


Place = Annotated[str, AfterValidator(_inside)]


@configuration
class Batch:
    """Points of a run's curves, parameters and tags; with a model the points become that model's as well."""

    do: Literal["batch", "metrics", "params", "tags"] = "batch"  # the others are of spools of earlier versions
    points: tuple[Point, ...] = ()
    params: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    model_id: str | None = None

    def perform(self, client: MlflowClient, run_id: str, again: bool = False) -> None:
        entities: dict[str, list[Any]] = {
            "metrics": [Metric(name, v, moment, step, model_id=self.model_id) for name, v, step, moment in self.points],
            "params": [Param(key, value) for key, value in self.params.items()],
            "tags": [RunTag(key, value) for key, value in self.tags.items()],
        }
        for kind, limit in AT_ONCE.items():
            for start in range(0, len(entities[kind]), limit):
                client.log_batch(run_id, **{kind: entities[kind][start : start + limit]}, synchronous=True)


@configuration
class Text:
    """A text artifact."""

    do: Literal["text"] = "text"
    content: str
    path: Place

    def perform(self, client: MlflowClient, run_id: str, again: bool = False) -> None:
        client.log_text(run_id, self.content, self.path)


@configuration
class Files:
    """A local file, or all of a local folder, for an artifact folder."""

    do: Literal["files"] = "files"
    local: str
    folder: Place | None = None

    def perform(self, client: MlflowClient, run_id: str, again: bool = False) -> None:
        log = client.log_artifacts if Path(self.local).is_dir() else client.log_artifact
        log(run_id, self.local, self.folder)


@configuration
class Input:
    """A dataset that the run takes in, for the UI to show."""

    do: Literal["input"] = "input"
    name: str
    digest: str
    source: str  # JSON: where it can be fetched
    profile: str  # JSON: how large it is
    context: str  # what for: `training`, `recorded`, ...

    def perform(self, client: MlflowClient, run_id: str, again: bool = False) -> None:
        dataset = Dataset(self.name, self.digest, "demonstrations", self.source, "null", self.profile)
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", self.context)])])


@configuration
class Close:
    """The end of the run."""

    do: Literal["close"] = "close"
    status: Annotated[str, Field(pattern="^(FINISHED|FAILED|KILLED)$")]
    time: int  # milliseconds since 1970

    def perform(self, client: MlflowClient, run_id: str, again: bool = False) -> None:
        # an interruption may have waited in a spool until the same command had gone on elsewhere to the end
        if self.status != "KILLED" or client.get_run(run_id).info.status != "FINISHED":
            client.set_terminated(run_id, status=self.status, end_time=self.time)


@configuration
class LoggedPolicy:
    """A policy folder, logged as an MLflow model with its figures at a step.

    With a task it is registered as a candidate for its expert; the run keeps the version in the tag `output.expert`.
    """

    do: Literal["policy", "candidate"] = "policy"  # the latter is of spools of earlier versions
    local: str
    name: str  # of the logged model
    step: int
    points: tuple[Point, ...]  # its figures
    artifact: Place | None  # folder among the run's artifacts where it is stored as well
    experiment_id: str
    digest: str | None = None
    task: str | None = None
    promotable: bool = False
    description: str = ""

    def perform(self, client: MlflowClient, run_id: str, again: bool = False) -> str:
        """The URI `models:/m-...` of the model, or `models:/<task>-expert/<version>` of the candidate."""
        folder = Path(self.local)
        digest = policy_digest(folder)
        # subtle: mlflow.pyfunc.log_model would first read the history of every metric of the run, which takes longer
        # than all the rest; the same is done here with the calls below it
        model_id = None
        if again:  # an earlier attempt may have made the model of this very policy
            begun = f"name = '{self.name}' AND source_run_id = '{run_id}'"
            found = pages(client.search_logged_models, [self.experiment_id], begun)
            model_id = next((str(m.model_id) for m in found if m.tags.get(Tag.POLICY_DIGEST) == digest), None)
        if model_id is None:
            made = client.create_logged_model(
                self.experiment_id, self.name, run_id, tags={Tag.POLICY_DIGEST: digest}, model_type="policy"
            )
            model_id = str(made.model_id)
        with tempfile.TemporaryDirectory(prefix="policy-", dir=scratch()) as place:
            client.log_model_artifacts(model_id, str(pack(Path(place), folder, model_id, run_id)))
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        known = client.get_run(run_id).outputs if again else None
        if known is None or all(output.model_id != model_id for output in known.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(model_id, self.step)])
        points = self.points
        for name, value, step, _ in points[:1]:
            # MLflow gives a model's points to its run as well, and keeps one of two that agree in name, step, value
            # and moment: they are of the moment of the evaluation, when the run has that
            for there in client.get_metric_history(run_id, name):
                if (there.step, there.value) == (step, value):
                    points = tuple((n, v, s, there.timestamp) for n, v, s, _ in self.points)
                    break
        Batch(points=points, model_id=model_id).perform(client, run_id)
        if self.artifact is not None:
            client.log_artifacts(run_id, self.local, self.artifact)
        source = f"models:/{model_id}"
        if self.task is None:
            return source
        version = register_candidate(
            client, self.task, source, run_id, self.digest or digest, self.promotable, self.description, again
        )
        reference = f"models:/{version.name}/{version.version}"
        client.set_tag(run_id, f"{OUTPUT_PREFIX}expert", reference)
        return reference


Operation = Batch | Text | Files | Input | Close | LoggedPolicy
_JSON: TypeAdapter[Operation] = TypeAdapter(Annotated[Operation, Field(discriminator="do")])


def written(operation: Operation) -> str:
    """An operation as JSON, for `read`."""
    return _JSON.dump_json(operation).decode()


def read(text: str | bytes) -> Operation:
    """The inverse of `written`. Raises BadInput for anything else; the values are for the store to judge."""
    try:
        return _JSON.validate_json(text, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise BadInput(f"{shortened(text)} is no operation: {where}: {shortened(fault['msg'])}") from None


def measured(points: Iterable[tuple[str, float, int]]) -> tuple[Point, ...]:
    """(name, value, step) points measured now; one that is not finite was not measured and is left out."""
    now = milliseconds()
    return tuple((name, float(value), int(step), now) for name, value, step in points if math.isfinite(value))


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags or parameters as the store keeps them: True is `true`, one that is None is left out."""
    shown = {key: value for key, value in values.items() if value is not None}
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in shown.items()}


def milliseconds() -> int:
    """Now, since 1970, and later than what was given out before in this process.

    MLflow keeps one of two points that agree in run, name, step, value and moment, so that a fast training would have
    fewer points than a slow one.
    """
    global _given
    _given = max(int(time.time() * 1000), _given + 1)
    return _given


_given = 0
