"""`reproduce`: a finished training, cloning or recording again, from its record: is it the same, bit for bit.

The record is what the run left in the store: its configuration, its task, and the inputs that its lineage names. Of the
working tree nothing is used but the code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.loading import to_data
from pipeline.config.stages import Collect, Finetune, Pretrain, Reproduce, TrainExpert
from pipeline.data import content_digest, save_dataset
from pipeline.data.first_difference import between_evaluations, between_trajectories
from pipeline.errors import BadInput
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.arms import arm_jobs, expert_jobs
from pipeline.learning.clones import CloneJob
from pipeline.names import Alias, Artifact, Tag, lineage_run_tag
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import record
from pipeline.policies import load_policy, policy_digest, scaling_of
from pipeline.policies.artifact import between_policies
from pipeline.report.progress import TrainingProgress
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking.content_key import ContentKey, clone_key, content_key, training_key
from pipeline.tracking.datasets import answering, fetch_dataset, part_of, through_camera
from pipeline.tracking.groups import evaluations_record, read_evaluations
from pipeline.tracking.models import download_policy, fetch_version, find_policy, find_version, starting_policies
from pipeline.tracking.reuse import read_key
from pipeline.tracking.runs import Run, get_kept_run, get_run, read_config, read_task, seed_of, stage_run_of, tag_of
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("run",)
AGAIN = "again"  # artifact folder of what was made again
SHOWN = 20  # differences of the record


@dataclass(frozen=True)
class Again:
    """What was made again, and what is known of the first time."""

    key: ContentKey  # of making it again
    made: Mapping[str, str]  # what -> digest
    recorded: Mapping[str, str | None]  # the same from the record
    stored: Mapping[str, str]  # the same of the files that lie in the store now
    first_difference: Callable[[], str | None]
    folder: Path

    @property
    def damaged(self) -> tuple[str, ...]:
        """Whose files in the store are not those on record."""
        return tuple(name for name, digest in self.stored.items() if digest != self.recorded[name])


def run(run: StageRun, config: Reproduce, upstream: Mapping[str, str]) -> StageOutcome:
    before = _finished(run, upstream.get("run"))
    stage, run_id = before.data.tags[Tag.STAGE], before.info.run_id
    run.tag({Tag.TASK: tag_of(before, Tag.TASK), lineage_run_tag("reproduced"): run_id})
    again = DO_AGAIN[stage](run, before)
    run.record_key(again.key)
    known = read_key(run.client, before)
    equal = again.made == again.recorded and not again.damaged
    lines = _lines(f"reproduce: {stage} of run {run_id}", again, known, equal)
    digests = {"made": again.made, "recorded": again.recorded, "stored": again.stored}
    run.json({"run_id": run_id, "equal": equal, "digests": digests, "lines": lines}, "reproduction.json")
    run.describe(lines[0])
    if config.keep or not equal:
        run.file(again.folder, AGAIN)
    return StageOutcome(tuple(lines), verdict=equal)


def _finished(run: StageRun, run_id: str | None) -> Run:
    """The run to do again. Raises BadInput for one that cannot be."""
    if run_id is None:
        raise BadInput("run is missing; give the id of a finished training, cloning or recording: -P run=<id>")
    before = get_kept_run(run.client, run_id, "run")
    name, stage = f"run {before.info.run_id}", before.data.tags.get(Tag.STAGE, "unknown")
    if stage not in DO_AGAIN:
        nested = f"{stage}_seed" in DO_AGAIN
        inside = f"; a {stage} is reproduced seed by seed: give a run nested in it" if nested else ""
        raise BadInput(f"{name} is of stage {stage!r}; only these can be done again: {', '.join(DO_AGAIN)}{inside}")
    if before.info.status != "FINISHED":
        raise BadInput(f"{name} is {before.info.status}, not FINISHED; only a finished one can be held against itself")
    return before


# --- doing it again --------------------------------------------------------------------------------------------------


def _training(run: StageRun, before: Run) -> Again:
    tags, seed, stage_run = before.data.tags, seed_of(before), stage_run_of(run.client, before)
    recorded = read_task(run.client, stage_run, run.folder)
    if tags[Tag.STAGE] == "train_expert_seed":
        expert = replace(read_config(run.client, stage_run, TrainExpert), seeds=(seed,))
        task = Task(recorded, expert.training.environment, expert.training.use_camera)
        jobs = expert_jobs(expert, task, run.folder)
    else:
        config = replace(read_config(run.client, stage_run, Finetune), seeds=(seed,))
        task = Task(recorded, config.training.environment, config.training.use_camera)
        start = tags.get(lineage_run_tag("policy"))
        starts = None
        if start is not None:
            clone = find_policy(run.client, start, task.config.name, {})
            starts = {seed: starting_policies(run.client, [clone], [seed])[seed].as_start()}
        arm = tag_of(before, Tag.ARM)
        config = replace(config, arms={name: its for name, its in config.arms.items() if name == arm})
        scalings = {seed: scaling_of(load_policy(download_policy(before.info.run_id)))}
        demonstrations = {}
        for name, its in config.arms.items():
            if its.demonstrations:
                dataset = fetch_dataset(get_run(run.client, tag_of(before, lineage_run_tag("dataset")), "dataset run"))
                pretrain, place = tag_of(before, lineage_run_tag("pretrain")), run.folder / "demonstrations"
                demonstrations[name] = dataset.in_batches(run.client, pretrain, task, place, its.episodes)
        made_jobs = arm_jobs(config, task, run.folder, starts, scalings, demonstrations)
        jobs = [made.job for made in made_jobs if made.arm == arm]
        if not jobs:
            raise BadInput(f"run {before.info.run_id}: the config on record has no arm {arm!r}")
    (job,) = jobs
    with TrainingProgress("reproduce", [job]) as progress:
        (result,) = run_side_by_side([job], 1, progress.on_event)
    folder, stored = Path(job.output) / "best", download_policy(before.info.run_id)
    evaluations = read_evaluations(run.client, before)
    return Again(
        training_key(job),
        {"best policy": result.best_digest, "last policy": result.last_digest},
        {"best policy": tags.get(Tag.POLICY_DIGEST), "last policy": tags.get(Tag.LAST_POLICY_DIGEST)},
        {"best policy": policy_digest(stored)},
        lambda: between_evaluations(evaluations, evaluations_record(result)) or between_policies(stored, folder),
        folder,
    )


def _cloning(run: StageRun, before: Run) -> Again:
    seed, stage_run = seed_of(before), stage_run_of(run.client, before)
    config, task = read_config(run.client, stage_run, Pretrain), Task(read_task(run.client, stage_run, run.folder))
    dataset = fetch_dataset(get_run(run.client, tag_of(before, lineage_run_tag("dataset")), "dataset run"))
    dataset = part_of(dataset, config.episodes)
    key = clone_key(config, task.config, dataset.metadata, seed)
    demonstrator = answering(run.client, config, dataset.metadata, task)
    if config.use_camera:
        dataset = through_camera(run, task, dataset)
    data, digest = dataset.trajectories, dataset.metadata.content_digest
    job = CloneJob(task.config, config, data, digest, seed, str(run.folder), demonstrator)
    clone = job.perform(lambda event: None)
    stored = download_policy(before.info.run_id)
    return Again(
        key,
        {"policy": clone.digest},
        {"policy": before.data.tags.get(Tag.POLICY_DIGEST)},
        {"policy": policy_digest(stored)},
        lambda: between_policies(stored, clone.folder),
        clone.folder,
    )


def _recording(run: StageRun, before: Run) -> Again:
    config = read_config(run.client, before, Collect)
    if config.source not in ("expert", "scripted"):
        raise BadInput(f"run {before.info.run_id} took in a dataset from outside; only a recording can be done again")
    task = Task(read_task(run.client, before, run.folder), config.environment)
    if config.scripted is not None:
        demonstrator = scripted(config.scripted.demonstrator, config.scripted.kwargs)
    else:  # approved or not today
        version = find_version(run.client, tag_of(before, Tag.LINEAGE_EXPERT), task.config.name, Alias.APPROVED)
        demonstrator = fetch_version(version).demonstrator(task)
    trajectories, _ = record(task, config, demonstrator.actor)
    stored, folder = fetch_dataset(before), run.folder / Artifact.DATASET
    save_dataset(folder, trajectories, stored.metadata)
    return Again(
        content_key(to_data(config), task.config, {"demonstrator": demonstrator.provenance["digest"]}),
        {"dataset": content_digest(trajectories)},
        {"dataset": before.data.tags.get(Tag.DATASET_DIGEST)},
        {"dataset": content_digest(stored.trajectories)},
        lambda: between_trajectories(stored.trajectories, trajectories),
        folder,
    )


DO_AGAIN: Mapping[str, Callable[[StageRun, Run], Again]] = {
    "train_expert_seed": _training,
    "baseline_seed": _training,
    "finetune_seed": _training,
    "pretrain_seed": _cloning,
    "collect": _recording,
}


# --- saying what came of it ------------------------------------------------------------------------------------------


def _lines(what: str, again: Again, known: ContentKey | None, equal: bool) -> list[str]:
    """The verdict; where it is no, what differs first and why; and every difference of what it was made from."""
    differences = () if known is None else again.key.differences(known)
    then = "an unknown kind of processor" if known is None else known.processor
    elsewhere = "" if then == again.key.processor else f"; done again on {again.key.processor}"
    shown = [f"  {'although ' if equal else ''}{difference.sentence()}" for difference in differences[:SHOWN]]
    if equal:
        digests = ", ".join(f"{name} {digest}" for name, digest in again.made.items())
        return [f"{what} is EQUAL, bit for bit: {digests}", f"  made on {then}{elsewhere}", *shown]
    if again.made == again.recorded:
        cause = f"the files of the {again.damaged[0]} in the store were changed after they were recorded"
    elif known is None:
        cause = "not known: the run has no record of what it was made from"
    elif not differences:
        cause = "nothing on record differs: is the environment deterministic?"
    else:
        section = differences[0].section
        names = [difference.name for difference in differences if difference.section == section]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        changed = " (its record was changed since)" if section in ("config", "task") else ""
        cause = f"{section}: {names[0]}{more}{changed}"
    name = next(n for n in again.made if again.made[n] != again.recorded[n] or n in again.damaged)
    return [
        f"{what} is NOT equal: {name} {again.made[name]}, on record {again.recorded[name]}",
        f"  first difference: {again.first_difference() or f'the {name} alone'}",
        f"  made on {then}{elsewhere}",
        f"  likely cause: {cause}",
        *shown,
    ]
