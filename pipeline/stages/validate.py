"""`validate`: hold a dataset to the whole catalogue again; what it says becomes the dataset's status."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.loading import load_task
from pipeline.config.stages import Validate
from pipeline.names import METADATA_FILE, Artifact, Quality, Tag
from pipeline.policies import ActFunction, act_function, load_policy
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage, taint
from pipeline.tracking.datasets import download_dataset, find_dataset_run
from pipeline.tracking.models import fetch_version, find_version
from pipeline.tracking.registry import approvals
from pipeline.tracking.runs import StageRun
from pipeline.trajectories import read_metadata
from pipeline.validation import Context, TaskReplay, validate

UPSTREAM = ("dataset",)


def run(run: StageRun, config: Validate, upstream: Mapping[str, str]) -> StageOutcome:
    task_config = load_task(config.task)
    recorded = find_dataset_run(run.client, upstream.get("dataset", "latest"), task_config.name)
    folder = download_dataset(recorded)
    run.record_config(config, task_config, {"dataset": recorded.data.tags[Tag.DATASET_DIGEST]})
    run.tag(lineage.from_dataset(recorded))
    metadata = read_metadata(folder / METADATA_FILE)
    task = Task(task_config, metadata["environment"]["kwargs"])
    context = Context(
        task=task_config,
        observation_space=task.observation_space,
        action_space=task.action_space,
        min_episodes=config.min_episodes,
        approvals=approvals(run.client, task_config.name),
        expected_digest=recorded.data.tags[Tag.DATASET_DIGEST],
        replay=TaskReplay(task),
        replay_episodes=config.replay_episodes,
        act=_demonstrator(run, metadata),
    )
    report = validate(folder, context)
    run.text(report.to_json(), Artifact.VALIDATION_JSON)
    run.text(report.to_markdown(), Artifact.VALIDATION_MD)
    dataset_id = recorded.data.tags[Tag.DATASET_ID]
    run.tag({Tag.DATASET_ID: dataset_id, Tag.DATASET_QUALITY: report.status})
    run.client.set_tag(recorded.info.run_id, Tag.DATASET_QUALITY, report.status)
    summary = [f"validate: dataset {dataset_id}: {report.summary()}"]
    if report.status == Quality.QUARANTINED:
        reason = f"dataset {dataset_id} was quarantined by run {run.run_id}: {', '.join(report.failed_rules)}"
        summary += taint.spread(run.client, recorded.info.run_id, reason)
    return StageOutcome(tuple(summary), verdict=report.passed)


def _demonstrator(run: StageRun, metadata: Mapping[str, Any]) -> ActFunction | None:
    """The expert that the dataset names, to hold its labels against; None when no expert is named."""
    demonstrator = metadata["demonstrator"]
    if demonstrator["kind"] != "expert":
        return None
    version = find_version(run.client, f"{demonstrator['name']}/{demonstrator['version']}", metadata["task"], "")
    return act_function(load_policy(fetch_version(version).folder))
