"""Rows for questions: datasets and registered versions as plain dictionaries."""

from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.data import metadata_faults, read_metadata
from pipeline.errors import BadInput
from pipeline.names import Artifact, Tag, VersionTag, registered_model
from pipeline.tracking.runs import get_run, search, tag_value
from pipeline.tracking.store import downloaded, pages


def dataset_rows(client: MlflowClient, task: str | None) -> list[dict[str, Any]]:
    """One row a recording run, newest first, from its tags and its metadata file."""
    tags = {Tag.STAGE: "collect"} | ({} if task is None else {Tag.TASK: tag_value(task)})
    runs = [run for run in search(client, tags, status=None) if Tag.DATASET_ID in run.data.tags]
    return [_dataset_row(run) for run in runs]


def _dataset_row(run: Run) -> dict[str, Any]:
    """Status and digest from the tags; the rest from the metadata, or None where those cannot be read."""
    tags = run.data.tags
    metadata = _metadata(run)
    demonstrator = metadata.get("demonstrator")
    return {
        "dataset_id": tags[Tag.DATASET_ID],
        "quality": tags.get(Tag.DATASET_QUALITY),
        "episodes": metadata.get("episodes"),
        "steps": metadata.get("steps"),
        "coverage": metadata.get("scenario_coverage"),
        "demonstrator": f"{demonstrator['name']}/{demonstrator['version']}" if demonstrator else None,
        "digest": tags.get(Tag.DATASET_DIGEST),
        "recorded": metadata.get("created_at"),
        "run_id": run.info.run_id,
        "taint": tags.get(Tag.TAINT),
    }


def _metadata(run: Run) -> dict[str, Any]:
    """The metadata of a dataset; empty when they are gone or damaged: a list of datasets shows those as well."""
    try:
        with downloaded(f"runs:/{run.info.run_id}/{Artifact.METADATA}") as copy:
            metadata = read_metadata(copy)
    except (MlflowException, OSError, BadInput):
        return {}
    return {} if metadata_faults(metadata) else metadata


def version_rows(client: MlflowClient, task: str | None) -> list[dict[str, Any]]:
    """One row a registered version, newest first, with its state in the gate."""
    condition = (
        f"name = '{registered_model(tag_value(task))}'" if task is not None else f"tags.`{VersionTag.GATE}` != ''"
    )
    found = pages(client.search_model_versions, condition, order_by=["creation_timestamp DESC"])
    # a search does not return aliases: they are read version by version
    versions = [client.get_model_version(version.name, version.version) for version in found]
    return [
        {
            "model": version.name,
            "version": int(version.version),
            "gate": version.tags.get(VersionTag.GATE),
            "aliases": ", ".join(sorted(version.aliases)),
            "digest": version.tags.get(VersionTag.POLICY_DIGEST),
            "reason": version.tags.get(VersionTag.GATE_REASON),
            "gate_run_id": version.tags.get(VersionTag.GATE_RUN_ID),
            "run_id": version.run_id,
            "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
            "taint": version.tags.get(VersionTag.TAINT),
        }
        for version in versions
    ]


def metric_history(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every point, by step. Raises BadInput for an unknown run."""
    get_run(client, run_id, "curves of run")
    try:
        points = client.get_metric_history(run_id, metric)
    except MlflowException as error:
        raise BadInput(f"metric {metric!r} of run {run_id} cannot be read: {error.message}") from None
    # a point that was also logged for a model is in the history twice
    return sorted({(point.step, point.value) for point in points})
