"""The run of a stage: opened with its configuration on record, closed with what became of it."""

import contextlib
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric as MetricEntity
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from pipeline.config.loading import flatten, parse_yaml, to_data, to_yaml, validate
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput, shortened
from pipeline.names import CONFIG_PARAM_PREFIX, Artifact, Tag
from pipeline.tracking.provenance import environment_record, git_state
from pipeline.tracking.store import chosen_experiment, connect

C = TypeVar("C")

MAX_PARAM_LENGTH = 6_000
BATCH = 100  # parameters or tags in one request
METRIC_BATCH = 1_000


@dataclass(frozen=True)
class StageRun:
    """An open MLflow run and what can be written to it. `parent` links the runs of one seed to their stage's."""

    client: MlflowClient
    run_id: str
    experiment_id: str
    folder: Path  # for files on their way to the store; gone when the run closes

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Set run tags; values become text, True and False become `true` and `false`."""
        entities = [RunTag(key, tag_text(value)) for key, value in tags.items() if value is not None]
        self.client.log_batch(self.run_id, tags=entities, synchronous=True)

    def describe(self, text: str) -> None:
        """The description that the UI shows above a run."""
        self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, text)

    def metrics(self, values: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
        """Log finite figures at a step; a figure that is not finite was not measured and is left out."""
        now = int(time.time() * 1000)
        entities = [
            MetricEntity(key, float(value), now, step, model_id=model_id)
            for key, value in values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(entities), METRIC_BATCH):
            self.client.log_batch(self.run_id, metrics=entities[start : start + METRIC_BATCH], synchronous=True)

    def metric_series(self, points: Sequence[tuple[str, float, int]]) -> None:
        """Log `(name, value, step)` points in few requests."""
        now = int(time.time() * 1000)
        entities = [MetricEntity(k, float(v), now, s) for k, v, s in points if math.isfinite(v)]
        for start in range(0, len(entities), METRIC_BATCH):
            self.client.log_batch(self.run_id, metrics=entities[start : start + METRIC_BATCH], synchronous=True)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; a long one is cut, the whole stands in the config artifact."""
        entities = [Param(key, tag_text(value)[:MAX_PARAM_LENGTH]) for key, value in values.items()]
        for start in range(0, len(entities), BATCH):
            self.client.log_batch(self.run_id, params=entities[start : start + BATCH], synchronous=True)

    def text(self, content: str, path: str) -> None:
        """Store a text artifact under `path`, e.g. `diagnostics.md`."""
        self.client.log_text(self.run_id, content, path)

    def json(self, content: Any, path: str) -> None:
        """Store an artifact as indented JSON."""
        self.text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", path)

    def file(self, local: Path, folder: str | None = None) -> None:
        """Store a file, or all of a local folder, under an artifact folder."""
        if local.is_dir():
            self.client.log_artifacts(self.run_id, str(local), folder)
        else:
            self.client.log_artifact(self.run_id, str(local), folder)

    def record_config(self, config: Any, task: TaskConfig, inputs: Mapping[str, str]) -> None:
        """Put the resolved configuration and the identity of all inputs on record before the work starts.

        `inputs` maps a role to the digest of what was read. `inputs.digest` is equal for equal inputs and settings.
        """
        data, task_data = to_data(config), to_data(task)
        self.text(to_yaml(config), Artifact.CONFIG)
        self.text(to_yaml(task), Artifact.TASK)
        self.json(environment_record(), Artifact.ENVIRONMENT)
        self.params({f"{CONFIG_PARAM_PREFIX}{key}": value for key, value in flatten(data).items()})
        self.tag({Tag.TASK: task.name, Tag.INPUTS_DIGEST: digest_of({"config": data, "task": task_data, **inputs})})

    def artifact_place(self, path: str) -> str:
        """Where an artifact lies: a path for a local store, a URI for any other."""
        uri = f"{self.client.get_run(self.run_id).info.artifact_uri}/{path}"
        return uri.removeprefix("file://")


@contextlib.contextmanager
def child_run(run: StageRun, name: str, tags: Mapping[str, Any]) -> Iterator[StageRun]:
    """A run nested in a stage's, e.g. of one seed, with a folder of its own; it fails when the work in it raises."""
    folder = run.folder / name
    folder.mkdir()
    with mlflow.start_run(experiment_id=run.experiment_id, run_name=name, nested=True) as active:
        child = StageRun(run.client, active.info.run_id, run.experiment_id, folder)
        child.tag({**code_tags(), **tags})
        yield child


def digest_of(data: Any) -> str:
    """sha256 over canonical JSON, 36 characters: as long as MLflow takes for a dataset."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode()).hexdigest()[:36]


@contextlib.contextmanager
def open_run(stage: str, experiment: str | None = None, nested: bool = False) -> Iterator[StageRun]:
    """Open the run of a stage: the one `mlflow run` made, a nested one, or a new one.

    A user's error ends it FAILED with the error's line as its description; so does any other exception.
    """
    client = connect()
    parent = mlflow.active_run() if nested else None
    chosen: str | None
    if parent is not None and experiment is None:
        chosen = parent.info.experiment_id
    else:
        chosen = chosen_experiment(client, experiment)
    with (
        tempfile.TemporaryDirectory(prefix=f"{stage}-") as folder,
        mlflow.start_run(experiment_id=chosen, nested=nested) as active,
    ):
        run = StageRun(client, active.info.run_id, active.info.experiment_id, Path(folder))
        try:
            run.tag({Tag.STAGE: stage, MLFLOW_RUN_NAME: _run_name(stage, active), **code_tags()})
            yield run
        except BadInput as error:
            run.describe(str(error))
            raise
        except KeyboardInterrupt:
            run.describe("interrupted")
            raise
        except Exception as error:
            run.describe(f"failed: {type(error).__name__}: {shortened(str(error), 500)}")
            raise


def end_failed(run: StageRun) -> None:
    """End a closed run FAILED after all: its stage did its work, and the verdict is a refusal."""
    run.client.set_terminated(run.run_id, status="FAILED")


def get_run(client: MlflowClient, run_id: str, what: str) -> Run:
    """The run of that id. Raises BadInput when there is none: an unknown id never stands for another run."""
    try:
        return client.get_run(run_id)
    except MlflowException:
        raise BadInput(f"{what} {shortened(run_id)}: the store has no such run; give a run id or 'latest'") from None


def read_text_artifact(client: MlflowClient, run_id: str, path: str) -> str | None:
    """A text artifact of a run; None when the run has no such artifact."""
    folder = path.rpartition("/")[0]
    if not any(item.path == path for item in client.list_artifacts(run_id, folder or None)):
        return None
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path)).read_text(encoding="utf-8")


def read_config(client: MlflowClient, run: Run, cls: type[C]) -> C:
    """The configuration a run put on record. Raises BadInput when it is gone or no longer fits."""
    text = read_text_artifact(client, run.info.run_id, Artifact.CONFIG)
    source = f"{Artifact.CONFIG} of run {run.info.run_id}"
    if text is None:
        raise BadInput(f"{source} is missing; run that stage again")
    return validate(cls, parse_yaml(text, source), source)


def latest_run(client: MlflowClient, what: str, **tags: str) -> Run:
    """The newest finished run with these tags (names with `_` for `.` are not translated). Raises BadInput."""
    found = search(client, tags, limit=1)
    if not found:
        wanted = ", ".join(f"{key} = {value}" for key, value in tags.items())
        raise BadInput(f"{what} 'latest': the store has no finished run with {wanted}; run that stage first")
    return found[0]


def experiment_ids(client: MlflowClient) -> list[str]:
    """Every experiment of the store."""
    return [str(experiment.experiment_id) for experiment in client.search_experiments()]


def search(
    client: MlflowClient,
    tags: Mapping[str, str],
    limit: int = 1_000,
    status: str | None = "FINISHED",
    experiments: Sequence[str] | None = None,
) -> list[Run]:
    """Runs of all experiments that carry these tags, newest first; the store filters.

    Who searches often lists the experiments once and gives them: that takes as long as a search.
    """
    conditions = [f"tags.`{key}` = '{tag_value(value)}'" for key, value in tags.items()]
    if status is not None:
        conditions.append(f"attributes.status = '{status}'")
    everywhere = list(experiments) if experiments is not None else experiment_ids(client)
    found: list[Run] = []
    token: str | None = None
    while len(found) < limit:
        page = client.search_runs(
            everywhere, " and ".join(conditions), max_results=min(limit - len(found), 1_000),
            order_by=["attributes.start_time DESC"], page_token=token,
        )  # fmt: skip
        found.extend(page)
        token = page.token
        if not token:
            break
    return found


def _run_name(stage: str, active: Run) -> str:
    """The name a person gave to the run, or the stage's."""
    name = active.info.run_name or ""
    made_up = len(name.split("-")) == 3 and name.split("-")[-1].isdigit()  # MLflow's own "adjective-animal-123"
    return stage if made_up or not name else name


def code_tags() -> dict[str, Any]:
    """Tags that say which code a run ran."""
    commit, dirty = git_state()
    return {Tag.CODE_COMMIT: commit, Tag.CODE_DIRTY: dirty}


def tag_value(value: str) -> str:
    """A value that may stand in a search. Raises BadInput for one that could end its quotes."""
    if len(value) > 500 or not value.isprintable() or any(c in value for c in "'\"`\\%"):
        raise BadInput(f"{shortened(value)}: names hold no quotes, backslashes, % or control characters")
    return value


def tag_text(value: Any) -> str:
    """`True` -> `"true"`; anything else as `str` writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
