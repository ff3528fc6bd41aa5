"""`finetune`: PPO from clones, or any other policy, several seeds side by side, with controls of learning rate 0."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Finetune, FurtherArm, Pretrain
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput, say
from pipeline.learning.arms import Start, arm_jobs
from pipeline.learning.ppo import discount
from pipeline.names import CONTROLS, Artifact, Tag, further_policy_tag, lineage_run_tag
from pipeline.play.scenario_shift import scenario_shift
from pipeline.report.progress import ProgressBar
from pipeline.stages import StageOutcome, run_arms
from pipeline.statistics.ranking import pairs_needed
from pipeline.statistics.shift import Shift
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.content_key import cloning_inputs, content_key
from pipeline.tracking.datasets import (
    StoredDataset,
    demonstrator_of,
    fetch_dataset,
    fetch_for_training,
    imitated_datasets,
    part_of,
    recorded_otherwise,
)
from pipeline.tracking.models import StoredPolicy, find_policies, made_by_pretrain, starting_policies
from pipeline.tracking.reuse import find_finished
from pipeline.tracking.runs import Run, get_run, read_config, stage_run_of
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("policy", "group")


def inputs(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> dict[str, str]:
    return _read(run, config, upstream)[-1]


@dataclass(frozen=True)
class Starts:
    """What the seeds of an arm start from."""

    reference: str  # to the policy that was named, for people
    policies: dict[int, StoredPolicy]  # by seed
    lineages: dict[int, dict[str, str]]  # by seed: tags of what starts from it
    makers: tuple[Run, ...]  # of the policies that were named, as a rule one

    def for_trainings(self) -> dict[int, Start]:
        """By seed."""
        return {seed: policy.as_start() for seed, policy in self.policies.items()}

    def tags_of(self, seed: int) -> dict[str, Any]:
        """Lineage of the training of a seed."""
        return {**self.lineages[seed], lineage_run_tag("policy"): self.policies[seed].run_id}

    @property
    def lineage(self) -> dict[str, str]:
        """Tags of what starts from all of them: of the first, and by whom the others were made."""
        return next(iter(self.lineages.values())) | further("policy", self.makers[1:])


def further(role: str, makers: Iterable[Run]) -> dict[str, str]:
    """Lineage tags of the runs that made policies which a run starts from beside its first."""
    return {further_policy_tag(role, maker.info.run_id): maker.info.run_id for maker in makers}


def _read(
    run: StageRun, config: Finetune, upstream: Mapping[str, str]
) -> tuple[Starts, dict[str, Starts], dict[str, str]]:
    """What the arms start from; those by name that start from something else; role -> digest of all that is read."""
    task = load_task(config.task)

    def starts_of(reference: str) -> Starts:
        named = find_policies(run.client, reference, task.name, {Tag.STAGE: "pretrain"})
        makers = [get_run(run.client, str(policy.run_id), "policy") for policy in named]
        tags: dict[str, dict[str, str]] = {}
        for policy, maker in zip(named, makers, strict=True):
            lineage.refuse_tainted(run.client, policy, "finetune")
            role = "pretrain" if made_by_pretrain(maker) else "policy"
            tags[maker.info.run_id] = lineage.from_policy(policy, role, maker.data.tags)
        policies, lineages = starting_policies(run.client, named, config.seeds), {}
        for seed, start in policies.items():
            made_by = str(start.run_id)
            if made_by not in tags:  # a clone of one seed, made within the run that was named
                made_by = stage_run_of(run.client, get_run(run.client, made_by, "clone")).info.run_id
            lineages[seed] = tags[made_by]
        return Starts(named[0].reference, policies, lineages, tuple(makers))

    starts = starts_of(upstream.get("policy", "latest"))
    # the policies, and what the shift of distribution is measured against
    digests = {f"policy of seed {seed}": start.identity for seed, start in starts.policies.items()}
    own: dict[str, Starts] = {}
    for name, arm in config.arms.items():
        if arm.policy is not None:
            own[name] = starts_of(arm.policy)
        elif arm.own_clones:
            own[name] = starts_of(_clones_for(run, task, name, arm, starts))
        if name in own:
            digests |= {f"policy of arm {name}, seed {seed}": p.identity for seed, p in own[name].policies.items()}
    return starts, own, {**digests, **lineage.digests_behind(starts.makers[0])}


def _clones_for(run: StageRun, task: TaskConfig, name: str, arm: FurtherArm, shared: Starts) -> str:
    """Id of the finished `pretrain` that made the clones which an arm asks for. Raises BadInput when there is none."""
    if lineage_run_tag("pretrain") not in shared.lineage:
        raise BadInput(
            f"arm {name!r}: its clones are made with the settings of the other arms' clones, and these start from the "
            f"policy of run {shared.makers[0].info.run_id}, which is none; name its policy, or start from clones"
        )
    made = stage_run_of(run.client, get_run(run.client, shared.lineage[lineage_run_tag("pretrain")], "pretrain run"))
    cloning = arm.cloning(read_config(run.client, made, Pretrain))
    reference = arm.dataset or shared.lineage[lineage_run_tag("dataset")]
    dataset = part_of(fetch_for_training(run.client, reference, task.name), cloning.episodes)
    key = content_key(to_data(cloning), task, cloning_inputs(cloning, dataset.metadata))
    found = find_finished(run.client, "pretrain", task.name, key)
    if found.run is None:
        asked = f"-P dataset={dataset.metadata.dataset_id}"
        asked += "" if cloning.episodes is None else f" -P episodes={cloning.episodes}"
        raise BadInput(
            f"arm {name!r}: no pretrain with the settings of run {made.info.run_id} has made its clones "
            f"({found.words}); do that first, with {asked}, or use main"
        )
    return str(found.run.info.run_id)


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    starts, own, digests = _read(run, config, upstream)
    made_from = starts.lineage
    recorded = made_from.get(lineage_run_tag("dataset"))  # None: no demonstrations are behind what was named
    in_batches = {}
    for name, arm in config.arms.items():
        if recorded is not None and arm.demonstrations:
            dataset = fetch_for_training(run.client, recorded, task.config.name)
            pretrain, place = made_from[lineage_run_tag("pretrain")], run.folder / f"demonstrations-{name}"
            in_batches[name] = dataset.in_batches(run.client, pretrain, task, place, arm.episodes)
    arms = arm_jobs(
        config,
        task,
        run.folder,
        starts.for_trainings(),
        demonstrations=in_batches,
        own_policies={arm: its.for_trainings() for arm, its in own.items()},
    )
    run.record_config(config, task.config, digests)
    run.tag({**made_from, **further("arm", (maker for its in own.values() for maker in its.makers))})
    lineages = (tags for its in (starts, *own.values()) for tags in its.lineages.values())
    datasets = imitated_datasets(run, (tags.get(lineage_run_tag("dataset")) for tags in lineages))
    shift = None
    if recorded is not None:
        shift = distribution_shift(run, Task(task.config, config.training.environment), config, made_from)
    for doubt in _doubts(run, config, task, starts, datasets):
        say(f"finetune: warning: {doubt}", sys.stderr)
    tags = {(arm.arm, arm.job.seed): own.get(arm.arm, starts).tags_of(arm.job.seed) for arm in arms}
    trained = run_arms(run, "finetune", config, task, arms, upstream.get("group"), tags)
    left = [f"{a.arm} seed {a.job.seed}" for a in arms if a.job.left_policy is not None and a.arm not in CONTROLS]
    lines = trained.summary
    if left:
        lines += (f"  fresh weights instead of clones that learnt nothing: {', '.join(left)}",)
    if recorded is None:
        lines += (f"  it started from the policy of {starts.reference}, behind which are no demonstrations",)
    elif shift is None:
        lines += (
            "  its scenarios were not held against the demonstrations: who made these cannot play there (imported, or "
            "a script that has changed), or fewer than two episodes there pass their filter",
        )
    elif shift.shifted:
        lines += (
            f"  its scenarios are unlike the demonstrations: distance {shift.distance:.3f} "
            f"(alike would be {shift.expected_distance:.3f}), p = {shift.p_value:.3g}",
        )
    return replace(trained, summary=lines)


def _doubts(
    run: StageRun, config: Finetune, task: Task, starts: Starts, datasets: Sequence[StoredDataset]
) -> Iterator[str]:
    """What a person should know of the clones before hours of training begin."""
    training, gamma = config.training, discount(config.training)
    known = [of.certificate for of in starts.policies.values() if of.certificate is not None]
    taught = {of.gamma for of in known if of.critic_explained_variance is not None and of.learnt_nothing is None}
    for other in taught - {None, gamma}:
        yield (
            f"the clones' critics know returns discounted by {other:g}, training.ppo.gamma is {gamma:g}; give "
            "cloning.gamma the same"
        )
    for maker in filter(made_by_pretrain, starts.makers):
        with contextlib.suppress(BadInput):  # the record is gone, or of an older version
            cloned = read_config(run.client, stage_run_of(run.client, maker), Pretrain)
            chosen = cloned.algorithm != "bc" or cloned.cloning.select == "rollout"
            same = (cloned.evaluation.seed, cloned.scenario_set) == (training.evaluation.seed, training.scenario_set)
            if chosen and same:
                yield (
                    "the clones were chosen on the episodes that measure the training (evaluation.seed = "
                    f"{training.evaluation.seed} of both); give one of them another seed"
                )
    recorded = {tags.get(Tag.LINEAGE_DATASET) for tags in starts.lineages.values()}
    samples, what = (len(recorded), "datasets") if len(recorded) > 1 else (len(config.seeds), "seeds")
    if config.arms and samples < (needed := pairs_needed(len(config.arms) + 1)):
        yield (
            f"{len(config.arms) + 1} arms against the one from scratch, on {samples} {what}: no difference in their "
            f"ranking can survive the correction for their number; from {needed} {what} on it can"
        )
    for dataset in datasets:
        if otherwise := recorded_otherwise(dataset.metadata, task):
            yield otherwise


def distribution_shift(run: StageRun, task: Task, config: Finetune, tags: Mapping[str, str]) -> Shift | None:
    """Are the fine-tuning scenarios like the demonstrations: the demonstrator itself plays them, noise, filter and all.

    Only the scenarios and the environment can then differ, not the policy; `task` is seen as it was recorded. None
    when nobody is there to play: the dataset was imported, the script that demonstrated is no longer the same, or fewer
    than two episodes there pass the filter.
    """
    dataset = fetch_dataset(get_run(run.client, tags[lineage_run_tag("dataset")], "dataset run"))
    demonstrator = demonstrator_of(run.client, dataset.metadata, task)
    if demonstrator is None:
        return None
    recorded, scenario_set = dataset.trajectories, config.training.scenario_set
    with ProgressBar("finetune", None, "episodes of the demonstrator") as progress:
        shift = scenario_shift(task, recorded, dataset.metadata, demonstrator.actor, scenario_set, progress.add)
    if shift is None:
        return None
    run.json(to_data(shift), Artifact.SHIFT)
    run.metrics({"shift/distance": shift.distance, "shift/p_value": shift.p_value})
    run.tag({Tag.SHIFT: "shifted" if shift.shifted else "alike"})
    return shift
