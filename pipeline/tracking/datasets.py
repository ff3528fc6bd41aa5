"""Demonstration datasets in the store: logged as inputs of runs, found again by reference, verified by digest."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.config.stages import Pretrain
from pipeline.data import (
    DatasetMetadata,
    Trajectories,
    content_digest,
    load_dataset,
    metadata_digest,
)
from pipeline.data.formats.npz import write_archive
from pipeline.errors import BadInput, shortened
from pipeline.files import write_folder
from pipeline.learning.arms import Demonstrated
from pipeline.names import TRAJECTORIES_FILE, Artifact, Quality, Tag, VersionTag, registered_model
from pipeline.play.demonstrators import Demonstrator, scripted
from pipeline.play.filming import view_again
from pipeline.tasks import Task
from pipeline.tracking import registry
from pipeline.tracking.models import find_policy
from pipeline.tracking.operations import Input
from pipeline.tracking.references import Reference, fetched
from pipeline.tracking.runs import (
    get_kept_run,
    get_run,
    latest_run,
    read_config,
    read_text_artifact,
    search,
    stage_run_of,
    tag_of,
)
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import pages
from pipeline.validation.facts import Approval, Refusal
from pipeline.validation.findings import FAILED


@dataclass(frozen=True)
class StoredDataset:
    """A dataset read from the store, with the run that recorded it."""

    trajectories: Trajectories
    metadata: DatasetMetadata
    run: Run  # the run whose record of quality counts

    @property
    def run_id(self) -> str:
        return str(self.run.info.run_id)

    def in_batches(
        self, client: MlflowClient, pretrain: str, task: Task, place: Path, episodes: int | None
    ) -> Demonstrated:
        """For SAC: so many of its episodes, copied to a folder; None: those that a `pretrain`, or a seed of it, cloned.

        Raises BadInput when it has fewer, or when the config of that is gone.
        """
        made = stage_run_of(client, get_run(client, pretrain, "pretrain run"))
        data = part_of(self, episodes or read_config(client, made, Pretrain).episodes).trajectories
        write_folder(place, {TRAJECTORIES_FILE: lambda file: write_archive(file, data.to_arrays())})
        return Demonstrated(place, content_digest(data), data, recorded_otherwise(self.metadata, task))


def log_dataset_input(run: StageRun, metadata: DatasetMetadata, recorded_by: str, context: str) -> None:
    """Show the dataset in the UI as an input of this run and of those that will be nested in it.

    With id, content digest, size and where it comes from; `context` says what for (`recorded`, `training`, ...).
    """
    size = {
        "episodes": metadata.episodes,
        "steps": metadata.steps,
        "scenario_coverage": dict(metadata.scenario_coverage),
    }
    shown = Input(
        name=metadata.dataset_id,
        digest=metadata.content_digest,
        source=json.dumps({"uri": f"runs:/{recorded_by}/{Artifact.DATASET}"}),
        profile=json.dumps(size),
        context=context,
    )
    run.write(shown)
    run.record.append(shown)


def imitated_datasets(run: StageRun, recorded_by: Iterable[str | None]) -> list[StoredDataset]:
    """The datasets of these runs, each once and an input of this run; None: nothing is imitated there."""
    found = [
        fetch_dataset(get_run(run.client, run_id, "dataset run")) for run_id in dict.fromkeys(recorded_by) if run_id
    ]
    for dataset in found:
        log_dataset_input(run, dataset.metadata, dataset.run_id, "imitated")
    return found


def dataset_tags(metadata: DatasetMetadata, quality: str) -> dict[str, str]:
    """Tags of the run that recorded (or validated) a dataset."""
    return {
        Tag.DATASET_ID: metadata.dataset_id,
        Tag.DATASET_DIGEST: metadata.content_digest,
        Tag.DATASET_METADATA_DIGEST: metadata_digest(metadata.to_data()),
        Tag.DATASET_QUALITY: quality,
    }


def find_dataset_run(client: MlflowClient, reference: str, task: str | None) -> Run:
    """The recording run behind a dataset id, a run id or `latest`, of one task or (None) of any. Raises BadInput."""
    named = Reference.parse(reference)
    if named.latest:
        return latest_run(client, "dataset", **{Tag.STAGE: "collect"}, **({} if task is None else {Tag.TASK: task}))
    if named.run_id:
        run = get_kept_run(client, reference, "dataset")
    elif named.dataset_id:
        found = search(client, {Tag.DATASET_ID: reference, Tag.STAGE: "collect"}, limit=1, status=None)
        if not found:
            raise BadInput(
                f"dataset {reference!r}: the store has no such dataset; list them: python -m pipeline datasets"
            )
        run = found[0]
    else:
        raise BadInput(f"dataset {shortened(reference)}: give a dataset id, the id of a collect run, or 'latest'")
    if Tag.DATASET_ID not in run.data.tags:
        raise BadInput(f"dataset {reference!r}: run {run.info.run_id} recorded no dataset; give a run of collect")
    if task is not None and run.data.tags.get(Tag.TASK) != task:
        raise BadInput(
            f"dataset {reference!r} is of task {run.data.tags.get(Tag.TASK)!r}, this stage works on {task!r}"
        )
    return run


def find_refusals(client: MlflowClient, run: Run) -> tuple[Refusal, ...]:
    """Every validation on record that found fault with the quarantined dataset of a recording run; none for others."""
    if run.data.tags.get(Tag.DATASET_QUALITY) != Quality.QUARANTINED:
        return ()
    again = search(client, {Tag.DATASET_ID: run.data.tags[Tag.DATASET_ID], Tag.STAGE: "validate"}, status=None)
    found = []
    for validation in (run, *again):
        run_id = validation.info.run_id
        text = read_text_artifact(client, run_id, Artifact.VALIDATION_JSON)
        if text is None:  # it ended before it came to a verdict
            continue
        try:
            report = json.loads(text)
            failed = tuple(rule["rule"] for rule in report["rules"] if rule["state"] == FAILED)
            asked = int(report["min_episodes"]), int(report["replay_episodes"])
        except (ValueError, KeyError, TypeError):
            raise BadInput(
                f"{Artifact.VALIDATION_JSON} of run {run_id} is damaged: why dataset "
                f"{shortened(run.data.tags[Tag.DATASET_ID])} was quarantined is not known; repair or record it"
            ) from None
        if failed:
            found.append(Refusal(run_id, failed, *asked))
    return tuple(found)


def approvals(client: MlflowClient, task: str, demonstrator: Mapping[str, Any]) -> tuple[Approval, ...]:
    """Every period during which a version of the task's expert was approved, oldest first.

    For judging what `demonstrator` (of a dataset's metadata) recorded: when the record of that version cannot be read,
    nothing can be judged, and BadInput is raised; other versions without a sound record are left out.
    """
    periods: list[Approval] = []
    for version in pages(client.search_model_versions, f"name = '{registered_model(task)}'"):
        digest = version.tags.get(VersionTag.POLICY_DIGEST, "not on record")
        try:
            periods += [Approval(str(version.version), digest, *period) for period in registry.history_of(version)]
        except BadInput:
            if (demonstrator.get("kind"), demonstrator.get("version")) == ("expert", str(version.version)):
                raise
    return tuple(sorted(periods, key=lambda period: period.since))


def fetch_dataset(run: Run) -> StoredDataset:
    """Download and read a dataset, whatever its quality. Raises BadInput when it cannot be read."""
    return StoredDataset(*_loaded(download_dataset(run)), run)


_loaded = lru_cache(maxsize=1)(load_dataset)  # what every stage of a `main` asks for is one dataset


def download_dataset(run: Run) -> Path:
    """The dataset folder of a recording run on this machine. Raises BadInput."""
    run_id = run.info.run_id
    return fetched(f"runs:/{run_id}/{Artifact.DATASET}", f"dataset of run {run_id}")


def fetch_for_training(client: MlflowClient, reference: str, task: str | None) -> StoredDataset:
    """The only door through which a dataset reaches training: validated, untainted, and the bytes on record."""
    run = find_dataset_run(client, reference, task)
    tags = run.data.tags
    name = f"dataset {tags[Tag.DATASET_ID]}"
    if tags.get(Tag.DATASET_QUALITY) != Quality.VALIDATED:
        raise BadInput(
            f"{name} is {tags.get(Tag.DATASET_QUALITY)!r}; only a validated dataset can be trained on: see "
            f"{Artifact.VALIDATION_MD} of run {run.info.run_id}, repair it (docs/datasets.md) or record a new one"
        )
    if Tag.TAINT in tags:
        raise BadInput(f"{name} is tainted: {tags[Tag.TAINT]}; record a new one")
    stored = fetch_dataset(run)
    digest, recorded = stored.metadata.content_digest, tag_of(run, Tag.DATASET_DIGEST)
    if digest != recorded:
        raise BadInput(f"{name}: its files changed: digest {digest}, on record {recorded}; record it anew")
    described = metadata_digest(stored.metadata.to_data())
    if described != tags.get(Tag.DATASET_METADATA_DIGEST):
        raise BadInput(
            f"{name}: its metadata changed: digest {described}, on record {tags.get(Tag.DATASET_METADATA_DIGEST)}; "
            "record it anew"
        )
    return stored


def part_of(dataset: StoredDataset, episodes: int | None) -> StoredDataset:
    """So many of its episodes (`Trajectories.part`); None: all. Raises BadInput when it has fewer."""
    if episodes is None:
        return dataset
    count = len(dataset.trajectories)
    if episodes > count:
        raise BadInput(
            f"episodes = {episodes} is more than dataset {dataset.metadata.dataset_id} has, {count}; record more, or "
            "clone fewer"
        )
    return replace(dataset, trajectories=dataset.trajectories.part(episodes))


def recorded_otherwise(metadata: DatasetMetadata, task: Task) -> str | None:
    """How the environment of a dataset differs in its arguments from the task's, in one line; None: in nothing."""
    recorded = metadata.environment
    pairs = [("environment", recorded["kwargs"], task.environment_kwargs)]
    pairs += [
        (f"scenario {name}", recorded["scenarios"].get(name, {}), task.config.scenarios[name])
        for name in metadata.scenario_coverage
        if name in task.config.scenarios
    ]

    def shown(kwargs: Mapping[str, Any], key: str) -> str:
        return shortened(kwargs[key]) if key in kwargs else "the default"

    differences = [
        f"{where}: {key} = {shown(theirs, key)}, here {shown(ours, key)}"
        for where, theirs, ours in pairs
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
    if not differences:
        return None
    return f"dataset {metadata.dataset_id} was recorded with other arguments than the task's: {'; '.join(differences)}"


def demonstrator_of(client: MlflowClient, metadata: DatasetMetadata, task: Task) -> Demonstrator | None:
    """Who demonstrated, ready to act again; None when nobody can: imported data, or a script that is not the same now.

    Raises BadInput for an expert that the registry has no more.
    """
    named = metadata.demonstrator
    if named["kind"] == "expert":
        return find_policy(client, f"{named['name']}/{named['version']}", metadata.task, {}).demonstrator(task)
    if named["kind"] == "scripted":
        try:
            today = scripted(named["name"], named.get("kwargs", {}))
        except BadInput:  # it is gone, or takes other parameters now
            return None
        return today if today.provenance["digest"] == named["digest"] else None
    return None


def answering(client: MlflowClient, config: Pretrain, metadata: DatasetMetadata, task: Task) -> Demonstrator | None:
    """Who answers to the clone; None for an algorithm that asks nobody. Raises BadInput where nobody can be asked."""
    if config.algorithm != "dagger":
        return None
    demonstrator = demonstrator_of(client, metadata, task)
    if demonstrator is None:
        named = metadata.demonstrator
        raise BadInput(
            f"algorithm 'dagger' asks the demonstrator, but {named['name']!r} ({named['kind']}) of dataset "
            f"{metadata.dataset_id} cannot be asked: the data was imported, or the script changed since; "
            "record again, or use algorithm 'bc', 'gail' or 'airl'"
        )
    return demonstrator


def through_camera(run: StageRun, task: Task, dataset: StoredDataset) -> StoredDataset:
    """The dataset with what the task's camera sees instead of the recorded observations; labels stay as they are."""
    started = time.perf_counter()
    kwargs = dataset.metadata.environment["kwargs"]
    seen = view_again(Task(task.config, kwargs, use_camera=True), dataset.trajectories)
    run.metrics({"camera/frames": len(seen.observations), "camera/seconds": time.perf_counter() - started})
    run.tag({Tag.CAMERA_DIGEST: content_digest(seen)})
    return replace(dataset, trajectories=seen)
