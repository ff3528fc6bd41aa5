"""Finished work that stands for new work: found by its content key, used only when nothing is known against it."""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.config.loading import parse_json
from pipeline.errors import BadInput
from pipeline.learning.jobs import TrainingJob
from pipeline.names import (
    CONFIG_PARAM_PREFIX,
    LINEAGE_ROLES,
    OUTPUT_PREFIX,
    Alias,
    Artifact,
    Tag,
    VersionTag,
    lineage_run_tag,
)
from pipeline.tracking.content_key import ContentKey, digest_of
from pipeline.tracking.datasets import fetch_for_training
from pipeline.tracking.groups import read_training, trainings
from pipeline.tracking.models import fetch_version, find_policy, find_version, seeds_of
from pipeline.tracking.references import downloaded
from pipeline.tracking.registry import require_approved
from pipeline.tracking.runs import get_run, read_text_artifact, search, seed_of, tag_of

HANDS_ON = {
    "train_expert": "expert", "promote": "expert", "collect": "dataset", "pretrain": "policy", "baseline": "group",
    "finetune": "group", "compare": "report",
}  # fmt: skip
NOTHING_LIKE_IT = "run: nothing like it in this store"
CANDIDATES = 10  # runs that are looked at: newest first


@dataclass(frozen=True)
class Found:
    """A run that stands for new work, or None, and why: a person reads it behind the name of the stage."""

    run: Run | None
    words: str


def find_finished(
    client: MlflowClient, stage: str, task: str, key: ContentKey, any_machine: bool = False, arm: str | None = None
) -> Found:
    """The newest finished run of a stage, and of an arm if one is given, with this content key.

    Nothing is known against it. `any_machine`: this key but for the machine that made it.

    Without one, the words say in which ingredient the most similar run differs.
    """
    tags = {Tag.STAGE: stage, Tag.TASK: task, **({} if arm is None else {Tag.ARM: arm})}
    doubts = []
    equal = {Tag.KEY_BUT_MACHINE: key.but_machine} if any_machine else {Tag.CONTENT_KEY: key.digest}
    for run in search(client, {**tags, **equal}, limit=CANDIDATES):
        try:
            refuse_unsound(client, run)
        except BadInput as doubt:
            doubts.append(f"run because run {run.info.run_id}, equal in all, cannot be used: {doubt}")
        else:
            return Found(run, f"reused (run {run.info.run_id})")
    if doubts:
        return Found(None, doubts[0])
    keys = [(run.info.run_id, read_key(client, run)) for run in search(client, tags, limit=CANDIDATES)]
    found = [(key.differences(other), run_id) for run_id, other in keys if other is not None]
    different, run_id = min(filter(lambda one: one[0], found), key=lambda one: len(one[0]), default=((), ""))
    if not different:
        return Found(None, NOTHING_LIKE_IT)
    more = f" and {len(different) - 1} more" if len(different) > 1 else ""
    return Found(None, f"run because {different[0].sentence()}{more} (closest: run {run_id})")


def find_shorter(client: MlflowClient, stage: str, arm: str, job: TrainingJob, key: ContentKey) -> Run | None:
    """Of the finished trainings that differ from this one in a smaller budget alone, the longest sound one."""
    tags = {Tag.STAGE: stage, Tag.TASK: job.task.name, Tag.ARM: arm, Tag.KEY_BUT_BUDGET: key.but_budget}
    shorter: dict[int, Run] = {}
    for run in search(client, tags, limit=CANDIDATES):
        its_key = read_key(client, run)
        with contextlib.suppress(BadInput):
            refuse_unsound(client, run)
            if its_key is not None and its_key.budget < job.budget:
                shorter[its_key.budget] = run
    return shorter[max(shorter)] if shorter else None


def read_key(client: MlflowClient, run: Run) -> ContentKey | None:
    """The content key that a run put on record with all its ingredients; None when it has none that can be read."""
    try:
        text = read_text_artifact(client, run.info.run_id, Artifact.CONTENT_KEY)
        return None if text is None else ContentKey.from_json(text)
    except BadInput:
        return None


# --- what speaks against a run ---------------------------------------------------------------------------------------


def refuse_unsound(client: MlflowClient, run: Run) -> None:
    """Raise BadInput when a finished run, or anything it came from, must not be relied on any more.

    It is tainted or was deleted; its dataset was quarantined; its expert is approved no more; files are gone or are not
    those on record.
    """
    tags = run.data.tags
    _refuse_damaged(client, run)
    for role in LINEAGE_ROLES:
        if role != "repaired" and lineage_run_tag(role) in tags:  # what it repairs is quarantined, or it would be none
            _refuse_damaged(client, get_run(client, tags[lineage_run_tag(role)], f"its {role} run"))
    if Tag.LINEAGE_EXPERT in tags:
        fetch_version(find_version(client, tags[Tag.LINEAGE_EXPERT], tag_of(run, Tag.TASK), Alias.APPROVED))
    stage, task = tags[Tag.STAGE], tag_of(run, Tag.TASK)
    if stage in ("train_expert", "promote"):
        if f"{OUTPUT_PREFIX}expert" not in tags:
            raise BadInput(f"run {run.info.run_id} has no registered version: python -m pipeline sync")
        version = find_version(client, tags[f"{OUTPUT_PREFIX}expert"], task, Alias.CANDIDATE)
        name = f"expert {version.name}/{version.version}"
        if VersionTag.TAINT in version.tags:
            raise BadInput(f"{name} is tainted: {version.tags[VersionTag.TAINT]}")
        candidate = fetch_version(version)
        if stage == "train_expert":
            _refuse_missing(run, list(seeds_of(client, candidate.run_id, "train_expert_seed")), "trainings")
        else:
            require_approved(version, "main")
            judge = version.tags.get(VersionTag.GATE_RUN_ID)
            if judge != run.info.run_id:
                raise BadInput(f"{name} was judged again by run {judge}")
    elif stage == "pretrain":
        find_policy(client, run.info.run_id, task, {})
        _refuse_missing(run, list(seeds_of(client, run.info.run_id, "pretrain_seed")), "clones")
    elif stage in ("baseline", "finetune"):
        members = trainings(client, run)
        for training in members:
            if training.info.status != "FINISHED":
                raise BadInput(f"its training {training.info.run_id} is {training.info.status}")
            refuse_unsound(client, training)
        arms = sorted({tag_of(training, Tag.ARM) for training in members})
        own = f"{CONFIG_PARAM_PREFIX}arms."
        further = {key.removeprefix(own).partition(".")[0] for key in run.data.params if key.startswith(own)}
        expected = 1 + (_setting(run, "control_timesteps") != 0) + len(further) * (stage == "finetune")
        if len(arms) != expected:
            raise BadInput(f"its trainings are of the arms {arms}, one is missing")
        for arm in arms:
            seeds = [seed_of(training) for training in members if tag_of(training, Tag.ARM) == arm]
            _refuse_missing(run, seeds, f"trainings of arm {arm}")
    elif stage == "compare":
        with downloaded(f"runs:/{run.info.run_id}/{Artifact.REPORT}", "its report") as copy:
            if report_digest(copy) != tags.get(Tag.REPORT_DIGEST):
                raise BadInput("the files of its report changed")
    elif stage in ("baseline_seed", "finetune_seed"):
        read_training(client, run)
    if stage in HANDS_ON and f"{OUTPUT_PREFIX}{HANDS_ON[stage]}" not in tags:
        raise BadInput(f"run {run.info.run_id} ({stage}) does not say what it hands on")


def report_digest(folder: Path) -> str:
    """One digest of all files of a report."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_of({str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files})


def _refuse_damaged(client: MlflowClient, run: Run) -> None:
    """What the run itself says and holds: marks against it, its dataset, its policy."""
    tags, run_id = run.data.tags, run.info.run_id
    name = f"run {run_id} ({tags.get(Tag.STAGE)})"
    if run.info.lifecycle_stage != "active":
        raise BadInput(f"{name} was deleted")
    if Tag.TAINT in tags:
        raise BadInput(f"{name} is tainted: {tags[Tag.TAINT]}")
    if tags.get(Tag.STAGE) == "collect":
        fetch_for_training(client, run_id, tag_of(run, Tag.TASK))
    elif Tag.POLICY_DIGEST in tags:
        find_policy(client, run_id, tag_of(run, Tag.TASK), {})


def _refuse_missing(run: Run, seeds: list[int], what: str) -> None:
    wanted = _setting(run, "seeds")
    if not isinstance(wanted, list) or set(seeds) != set(wanted) or len(seeds) != len(wanted):
        raise BadInput(f"its {what} are of seeds {sorted(seeds)}, not of {wanted}")


def _setting(run: Run, key: str) -> Any:
    """A setting of a run, from its parameters. Raises BadInput when that is gone."""
    name = f"{CONFIG_PARAM_PREFIX}{key}"
    return parse_json(run.data.params.get(name, ""), f"parameter {name} of run {run.info.run_id}")
