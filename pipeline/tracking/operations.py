"""What can be written to a run, as plain data: done at once, or kept in the outbox and done later.

An operation can be done twice with the same effect as once: points carry the time at which they were measured, which
together with name, step and value identifies them in the store; tags, parameters and files replace themselves.
"""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from pipeline.config.base import configuration
from pipeline.config.loading import parse_json, validate
from pipeline.errors import BadInput, shortened

Operation = dict[str, Any]  # JSON

MAX_PARAM_LENGTH = 6_000
BATCH = 100  # parameters or tags in one request
METRIC_BATCH = 1_000

Point = tuple[str, float, int, int]  # name, value, step, milliseconds since 1970


@configuration
class _Metrics:
    points: tuple[Point, ...]
    model_id: str | None


@configuration
class _Tags:
    tags: dict[str, str]


@configuration
class _Params:
    params: dict[str, str]


@configuration
class _Text:
    content: str
    path: str


@configuration
class _Files:
    local: str
    folder: str | None


@configuration
class _Close:
    status: Literal["FINISHED", "FAILED", "KILLED"]
    time: int


@configuration
class _Policy:
    local: str
    name: str
    step: int
    points: tuple[Point, ...]
    artifact: str | None
    experiment_id: str


@configuration
class _Registration:
    digest: str
    promotable: bool
    description: str


@configuration
class _Candidate(_Policy):
    task: str
    record: _Registration


# what an operation holds besides the name of what it does
SHAPES: Final[Mapping[str, Any]] = {
    "metrics": _Metrics, "tags": _Tags, "params": _Params, "text": _Text, "files": _Files, "close": _Close,
    "policy": _Policy, "candidate": _Candidate,
}  # fmt: skip


def metrics(points: Iterable[tuple[str, float, int]], model_id: str | None = None) -> Operation:
    """(name, value, step) points measured now; one that is not finite was not measured and is left out."""
    now = milliseconds()
    kept = [[name, float(value), step, now] for name, value, step in points if math.isfinite(value)]
    return {"do": "metrics", "points": kept, "model_id": model_id}


def tags(values: Mapping[str, Any]) -> Operation:
    """Run tags; values become text, one that is None is left out."""
    return {"do": "tags", "tags": {key: tag_text(value) for key, value in values.items() if value is not None}}


def note(text: str) -> Operation:
    """The description that the UI shows above a run."""
    return tags({MLFLOW_RUN_NOTE: text})


def params(values: Mapping[str, Any]) -> Operation:
    """Parameters; a long one is cut, the whole stands in the config artifact."""
    return {"do": "params", "params": {key: tag_text(value)[:MAX_PARAM_LENGTH] for key, value in values.items()}}


def text(content: str, path: str) -> Operation:
    """A text artifact under `path`."""
    return {"do": "text", "content": content, "path": path}


def files(local: Path, folder: str | None) -> Operation:
    """A file, or all of a local folder, under an artifact folder."""
    return {"do": "files", "local": str(local), "folder": folder}


def close(status: str) -> Operation:
    """The end of the run, now."""
    return {"do": "close", "status": status, "time": milliseconds()}


def read(text: str) -> Operation:
    """An operation from its JSON; its values are for the store to judge. Raises BadInput for anything else."""
    operation = parse_json(text, "an operation")
    do = operation.get("do") if isinstance(operation, dict) else None
    if not isinstance(do, str) or do not in SHAPES:
        raise BadInput(f"{shortened(operation)} is no operation; there are: {', '.join(SHAPES)}")
    validate(SHAPES[do], {key: value for key, value in operation.items() if key != "do"}, do)
    for key in ("path", "folder", "artifact"):  # MLflow refuses those outside a run's artifacts as if that might pass
        place = operation.get(key)
        if place is None:
            continue
        if place.startswith("/") or str(PurePosixPath(place)) != place or {".", ".."} & {*place.split("/")}:
            raise BadInput(f"{do}: {key} = {shortened(place)} is no path inside the artifacts of a run")
    return dict(operation)


def perform(client: MlflowClient, run_id: str, operation: Operation) -> None:
    """Do it to the store."""
    match operation["do"]:
        case "metrics":
            entities = [
                Metric(name, value, moment, step, model_id=operation["model_id"])
                for name, value, step, moment in operation["points"]
            ]
            for start in range(0, len(entities), METRIC_BATCH):
                client.log_batch(run_id, metrics=entities[start : start + METRIC_BATCH], synchronous=True)
        case "tags":
            run_tags = [RunTag(key, value) for key, value in operation["tags"].items()]
            for start in range(0, len(run_tags), BATCH):
                client.log_batch(run_id, tags=run_tags[start : start + BATCH], synchronous=True)
        case "params":
            entries = [Param(key, value) for key, value in operation["params"].items()]
            for start in range(0, len(entries), BATCH):
                client.log_batch(run_id, params=entries[start : start + BATCH], synchronous=True)
        case "text":
            client.log_text(run_id, operation["content"], operation["path"])
        case "files":
            local = Path(operation["local"])
            log = client.log_artifacts if local.is_dir() else client.log_artifact
            log(run_id, str(local), operation["folder"])
        case "close":
            client.set_terminated(run_id, status=operation["status"], end_time=operation["time"])
        case unknown:
            raise ValueError(f"unknown operation {unknown!r}")


def milliseconds() -> int:
    """Now, since 1970, and later than what was given out before in this process.

    MLflow keeps one of two points that agree in run, name, step, value and moment, so that a fast training would have
    fewer points than a slow one.
    """
    global _given
    _given = max(int(time.time() * 1000), _given + 1)
    return _given


_given = 0


def tag_text(value: Any) -> str:
    """`True` -> `"true"`; anything else as `str` writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
