"""`validate`: hold a dataset to the whole catalogue again; what it says becomes the dataset's status."""

import contextlib
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from pipeline.config.loading import load_task
from pipeline.config.stages import Collect, Validate
from pipeline.data import DatasetMetadata, metadata_faults, read_metadata
from pipeline.errors import BadInput
from pipeline.names import METADATA_FILE, Artifact, Quality, Tag
from pipeline.report.text import markdown_page
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import approvals, download_dataset, find_dataset_run, find_refusals, log_dataset_input
from pipeline.tracking.models import expert_to_ask
from pipeline.tracking.runs import read_config, tag_of
from pipeline.tracking.stage_run import StageRun
from pipeline.validation.facts import Context
from pipeline.validation.replay import TaskReplay
from pipeline.validation.rules import validate

UPSTREAM = ("dataset",)


def run(run: StageRun, config: Validate, upstream: Mapping[str, str]) -> StageOutcome:
    task_config = load_task(config.task)
    recorded = find_dataset_run(run.client, upstream.get("dataset", "latest"), task_config.name)
    tags, digest = recorded.data.tags, tag_of(recorded, Tag.DATASET_DIGEST)
    folder = download_dataset(recorded)
    run.record_config(config, task_config, {"dataset": digest})
    run.tag(lineage.from_dataset(recorded))
    asked, metadata = dict[str, Any](), None
    with contextlib.suppress(BadInput):  # of the environment, on top of the task's arguments, where that is on record
        asked = read_config(run.client, recorded, Collect).environment
    with contextlib.suppress(BadInput):  # metadata that cannot be relied on: the catalogue says so in its own words
        metadata = read_metadata(folder / METADATA_FILE)
    if metadata_faults(metadata):
        metadata = None
    if metadata is not None and (metadata["dataset_id"], metadata["content_digest"]) == (tags[Tag.DATASET_ID], digest):
        with contextlib.suppress(BadInput):  # somebody changed them: the catalogue says so
            log_dataset_input(run, DatasetMetadata.from_data(metadata), recorded.info.run_id, "validated")
    demonstrator = {} if metadata is None else metadata["demonstrator"]
    task = Task(task_config, asked if metadata is None else metadata["environment"]["kwargs"])
    replay = TaskReplay(task)
    context = Context(
        task=task_config,
        environment=asked,
        observation_space=task.observation_space,
        action_space=task.action_space,
        min_episodes=config.min_episodes,
        approvals=approvals(run.client, task_config.name, demonstrator),
        expected_digest=digest,
        expected_metadata_digest=tags.get(Tag.DATASET_METADATA_DIGEST),
        replay=replay,
        replay_episodes=config.replay_episodes,
        refusals=find_refusals(run.client, recorded),
        act=expert_to_ask(run.client, demonstrator, task_config.name),
    )
    with closing(replay):
        report = validate(folder, context)
    run.text(report.to_json(), Artifact.VALIDATION_JSON)
    run.text(markdown_page("validation", report=report), Artifact.VALIDATION_MD)
    dataset_id = tags[Tag.DATASET_ID]
    run.tag({Tag.DATASET_ID: dataset_id, Tag.DATASET_QUALITY: report.status})
    run.client.set_tag(recorded.info.run_id, Tag.DATASET_QUALITY, report.status)
    summary = [f"validate: dataset {dataset_id}: {report.summary()}"]
    if report.status == Quality.QUARANTINED:
        reason = f"dataset {dataset_id} was quarantined by run {run.run_id}: {', '.join(report.failed_rules)}"
        summary += lineage.spread_taint(run.client, recorded.info.run_id, reason)
    return StageOutcome(tuple(summary), verdict=report.passed)
