"""A policy becomes a candidate: logged as a model of its run and registered, at once or when the store answers."""

from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from pipeline.names import OUTPUT_PREFIX, registered_model
from pipeline.tracking import models, operations, registry
from pipeline.tracking.operations import Operation
from pipeline.tracking.runs import StageRun


def submit_candidate(
    run: StageRun, folder: Path, task: str, step: int, figures: dict[str, float], artifact: str, **record: Any
) -> ModelVersion | None:
    """Log the policy folder under `artifact` and register it; None when that waits in the outbox.

    `record` is what the version says of itself: `digest`, `promotable` and `description`. The run keeps the version in
    the tag `output.expert`.
    """
    operation = {
        **models.policy_operation(run, folder, "candidate", step, figures, artifact),
        "do": "candidate",
        "task": task,
        "record": record,
    }
    if run.outbox is not None:
        run.outbox.append(operation)
        return None
    return store_candidate(run.client, run.run_id, operation, again=run.continued)


def store_candidate(client: MlflowClient, run_id: str, operation: Operation, again: bool = False) -> ModelVersion:
    """Do it to the store; `again` when an earlier attempt may have come through."""
    task, record = operation["task"], operation["record"]
    source = models.store_policy(client, run_id, operation, again)
    version = registry.register_candidate(client, task, source, run_id, again=again, **record)
    reference = f"models:/{registered_model(task)}/{version.version}"
    operations.perform(client, run_id, operations.tags({f"{OUTPUT_PREFIX}expert": reference}))
    return version
