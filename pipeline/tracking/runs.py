"""Questions about runs: found by id, tag or `latest`, and what they put on record."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.config.loading import parse_yaml, validate
from pipeline.config.task import ExecutorSettings, Snqi, TaskConfig
from pipeline.data import metadata_faults, read_metadata
from pipeline.errors import BadInput, shortened
from pipeline.names import Artifact, Tag
from pipeline.tracking.references import downloaded, fetching
from pipeline.tracking.store import pages, refused_as

C = TypeVar("C")

PAGE = 1_000  # runs in one answer


def get_run(client: MlflowClient, run_id: str, what: str) -> Run:
    """The run of that id, deleted or not. Raises BadInput when there is none: an unknown id stands for no other run."""
    with refused_as(f"{what} {shortened(run_id)}: the store has no such run; give a run id or 'latest'"):
        return client.get_run(run_id)


def tag_of(run: Run, key: str) -> str:
    """A tag that the run's stage has set. Raises BadInput when it is gone: a tag is input like any other."""
    if key not in run.data.tags:
        stage = shortened(run.data.tags.get(Tag.STAGE, "unknown"))
        raise BadInput(f"run {run.info.run_id} (stage {stage}) has no tag {key}: its record is not complete")
    return str(run.data.tags[key])


def seed_of(run: Run) -> int:
    """The seed of the run of a single seed. Raises BadInput when its tag is no whole number."""
    text = tag_of(run, Tag.SEED)
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadInput(f"run {run.info.run_id}: its tag {Tag.SEED} is {shortened(text)}, which is no whole number")
    return int(text)


def get_kept_run(client: MlflowClient, run_id: str, what: str) -> Run:
    """The run of that id, of which something is used. Raises BadInput when there is none, or it was deleted."""
    run = get_run(client, run_id, what)
    if run.info.lifecycle_stage != "active":
        raise BadInput(
            f"{what} {run_id}: that run was deleted; name another one, or bring it back: mlflow runs restore --run-id "
            f"{run_id}"
        )
    return run


def read_text_artifact(client: MlflowClient, run_id: str, path: str) -> str | None:
    """A text artifact of a run; None when the run has no such artifact. Raises BadInput for one that is no text."""
    folder, what = path.rpartition("/")[0], f"{path} of run {run_id}"
    with fetching(what):
        if not any(item.path == path for item in client.list_artifacts(run_id, folder or None)):
            return None
        with downloaded(f"runs:/{run_id}/{path}", what) as copy:
            return copy.read_text(encoding="utf-8")


def recorded(client: MlflowClient, run: Run, path: str) -> str:
    """A text artifact that a run put on record. Raises BadInput when it is gone."""
    text = read_text_artifact(client, run.info.run_id, path)
    if text is None:
        raise BadInput(f"run {run.info.run_id} has no {path}: its record is not complete; run that stage again")
    return text


def read_config(client: MlflowClient, run: Run, cls: type[C]) -> C:
    """The configuration a run put on record. Raises BadInput when it is gone or no longer fits."""
    source = f"{Artifact.CONFIG} of run {run.info.run_id}"
    return validate(cls, parse_yaml(recorded(client, run, Artifact.CONFIG), source), source)


def read_task(client: MlflowClient, run: Run, folder: Path) -> TaskConfig:
    """The task a run put on record, with the files that it names as they were then, written to a folder.

    Where its trainings ran is no part of it. Raises BadInput when any of it is gone.
    """
    task = validate(TaskConfig, parse_yaml(recorded(client, run, Artifact.TASK), Artifact.TASK), Artifact.TASK)
    task = replace(task, executor=ExecutorSettings())
    if task.snqi is None:
        return task
    files = {name: folder / f"snqi_{name}.json" for name in vars(task.snqi)}
    for name, file in files.items():
        file.write_text(recorded(client, run, f"{Artifact.SNQI}/{name}.json"), encoding="utf-8")
    return replace(task, snqi=Snqi(**{name: str(file) for name, file in files.items()}))


def recorded_metadata(run: Run) -> dict[str, Any]:
    """The metadata of the dataset that a run recorded, read alone; empty when they are gone or damaged."""
    try:
        with downloaded(f"runs:/{run.info.run_id}/{Artifact.METADATA}", "the metadata") as copy:
            metadata = read_metadata(copy)
    except BadInput:
        return {}
    return {} if metadata_faults(metadata) else metadata


def stage_run_of(client: MlflowClient, run: Run) -> Run:
    """The run of the stage that the run of one seed is nested in; any other run is that itself. Raises BadInput."""
    if not run.data.tags.get(Tag.STAGE, "").endswith("_seed"):
        return run
    return get_run(client, run.data.tags.get(MLFLOW_PARENT_RUN_ID, "(none)"), f"stage of run {run.info.run_id}")


def latest_run(client: MlflowClient, what: str, **tags: str) -> Run:
    """The newest finished run with these tags (names with `_` for `.` are not translated). Raises BadInput."""
    found = search(client, tags, limit=1)
    if not found:
        wanted = ", ".join(f"{key} = {value}" for key, value in tags.items())
        raise BadInput(f"{what} 'latest': the store has no finished run with {wanted}; run that stage first")
    return found[0]


def metric_history(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every point, by step. Raises BadInput for an unknown run."""
    get_run(client, run_id, "curves of run")
    try:
        points = client.get_metric_history(run_id, metric)
    except MlflowException as error:
        raise BadInput(f"metric {metric!r} of run {run_id} cannot be read: {error.message}") from None
    # a point that was also logged for a model is in the history twice
    return sorted({(point.step, point.value) for point in points})


def points_of(client: MlflowClient, run_id: str) -> Counter[tuple[str, int]]:
    """How many points the store has of a run, by metric and step."""
    names = client.get_run(run_id).data.metrics
    return Counter((name, point.step) for name in names for point in client.get_metric_history(run_id, name))


def experiment_ids(client: MlflowClient) -> list[str]:
    """Every experiment of the store."""
    return [str(experiment.experiment_id) for experiment in pages(client.search_experiments)]


def search(
    client: MlflowClient,
    tags: Mapping[str, str | None],
    limit: int | None = None,
    status: str | None = "FINISHED",
    experiments: Sequence[str] | None = None,
) -> list[Run]:
    """Runs of all experiments that carry these tags, newest first, all or the first `limit`; the store filters.

    A tag of None may have any value. Who searches often lists the experiments once and gives them: that takes as long
    as a search.
    """
    conditions = [
        f"tags.`{key}` != ''" if value is None else f"tags.`{key}` = '{tag_value(value)}'"
        for key, value in tags.items()
    ]
    if status is not None:
        conditions.append(f"attributes.status = '{status}'")
    everywhere = list(experiments) if experiments is not None else experiment_ids(client)
    page = PAGE if limit is None else min(limit, PAGE)
    found = pages(
        client.search_runs, everywhere, " and ".join(conditions),
        max_results=page, order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    return list(islice(found, limit))


def tag_value(value: str) -> str:
    """A value that may stand in a search. Raises BadInput for one that could end its quotes."""
    if len(value) > 500 or not value.isprintable() or any(c in value for c in "'\"`\\%"):
        raise BadInput(f"{shortened(value)}: names hold no quotes, backslashes, % or control characters")
    return value
