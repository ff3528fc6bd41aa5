"""`finetune`: PPO from a certified clone, several seeds side by side, with controls of learning rate 0."""

from collections.abc import Mapping, Sequence

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Finetune
from pipeline.data.observations import flat_rows
from pipeline.errors import BadInput
from pipeline.learning.arms import arm_jobs, shared_settings
from pipeline.names import Artifact, Tag, lineage_run_tag
from pipeline.play.evaluation import record_episodes
from pipeline.policies.transfer import Transfer
from pipeline.report.progress import TrainingProgress, input_warnings, trainings_summary
from pipeline.stages import StageOutcome
from pipeline.statistics.shift import Shift, measure_shift
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage, taint
from pipeline.tracking.content_key import digest_of
from pipeline.tracking.datasets import demonstrator_of, fetch_dataset
from pipeline.tracking.models import StoredPolicy, clones_by_seed, find_policy
from pipeline.tracking.runs import StageRun, get_run, read_text_artifact
from pipeline.tracking.seed_runs import left_to_train, log_bill, train_logged

UPSTREAM = ("policy", "group")
SEED_STAGE = "finetune_seed"
SHIFT_EPISODES = 100  # that the demonstrator plays in the fine-tuning scenarios
SHIFT_SEED = 999


def inputs(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> dict[str, str]:
    policy = _policy(run, load_task(config.task).name, upstream)
    return _inputs(run, policy, starting_policies(run, policy, config.seeds))


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    policy = _policy(run, task.config.name, upstream)
    taint.refuse_tainted(run.client, policy, "finetune")
    starts = starting_policies(run, policy, config.seeds)
    arms = arm_jobs(config, task, run.folder, {seed: (start.folder, start.digest) for seed, start in starts.items()})
    run.record_config(config, task.config, _inputs(run, policy, starts))
    group = upstream.get("group") or run.run_id
    made_from = lineage.from_policy(policy, "pretrain", get_run(run.client, str(policy.run_id), "policy").data.tags)
    run.tag({Tag.GROUP: group, Tag.TRAINING_DIGEST: digest_of(shared_settings(config, task)), **made_from})
    if lineage_run_tag("dataset") not in made_from:
        raise BadInput(f"policy {policy.reference} was not made from demonstrations; give a run of pretrain")
    shift = distribution_shift(run, Task(task.config, config.training.environment), config, made_from)
    todo = left_to_train(run, arms, SEED_STAGE, config.reuse)
    jobs = [arms[i].job for i in todo]
    tags = [
        {
            **made_from,
            Tag.GROUP: group,
            Tag.STAGE: SEED_STAGE,
            Tag.ARM: arms[i].arm,
            lineage_run_tag("policy"): starts[arms[i].job.seed].run_id,
        }
        for i in todo
    ]
    with TrainingProgress("finetune", jobs) as progress:
        results = train_logged(run, jobs, tags, config.workers, progress.on_event)
    log_bill(run, results)
    reused = [f"{arm.arm} seed {arm.job.seed}" for i, arm in enumerate(arms) if i not in todo]
    lines = (*trainings_summary("finetune", [arms[i].arm for i in todo], results, reused), *input_warnings(task))
    if shift is None:
        lines += ("  its scenarios were not held against the demonstrations: nobody could play them as those were",)
    elif shift.shifted:
        lines += (
            f"  its scenarios are unlike the demonstrations: distance {shift.distance:.3f} "
            f"(alike would be {shift.expected_distance:.3f}), p = {shift.p_value:.3g}",
        )
    return StageOutcome(lines, outputs={"group": group})


def _policy(run: StageRun, task: str, upstream: Mapping[str, str]) -> StoredPolicy:
    return find_policy(run.client, upstream.get("policy", "latest"), task, {Tag.STAGE: "pretrain"})


def _inputs(run: StageRun, policy: StoredPolicy, starts: Mapping[int, StoredPolicy]) -> dict[str, str]:
    """The clones, and what the shift of distribution is measured against."""
    tags = get_run(run.client, str(policy.run_id), "policy").data.tags
    names: tuple[str, ...] = (Tag.LINEAGE_DATASET_DIGEST, Tag.LINEAGE_EXPERT_DIGEST)
    behind = {name: tags[name] for name in names if name in tags}
    return {**{f"policy of seed {seed}": start.digest for seed, start in starts.items()}, **behind}


def distribution_shift(run: StageRun, task: Task, config: Finetune, tags: Mapping[str, str]) -> Shift | None:
    """Are the fine-tuning scenarios like the demonstrations: the demonstrator itself plays them, noise, filter and all.

    Only the scenarios and the environment can then differ, not the policy; `task` is seen as it was recorded. None
    when nobody is there to play: the dataset was imported, the script that demonstrated is no longer the same, or no
    episode there passes the filter.
    """
    dataset = fetch_dataset(get_run(run.client, tags[lineage_run_tag("dataset")], "dataset run"))
    demonstrator = demonstrator_of(run.client, dataset.metadata, task)
    if demonstrator is None:
        return None
    count = min(SHIFT_EPISODES, len(dataset.trajectories))
    episodes = task.episodes(config.training.scenario_set, SHIFT_SEED, count, Purpose.EVALUATE)
    rollouts = record_episodes(task, demonstrator.actor, episodes, dataset.metadata.noise_std, SHIFT_SEED)
    rollouts = rollouts.select(rollouts.passing(**dataset.metadata.filter))
    if not len(rollouts):
        return None
    reference = [flat_rows(dataset.trajectories.episode(i).observations) for i in range(len(dataset.trajectories))]
    played = [flat_rows(rollouts.episode(i).observations) for i in range(len(rollouts))]
    scenarios = ([str(name) for name in dataset.trajectories.scenarios], [str(name) for name in rollouts.scenarios])
    shift = measure_shift(reference, played, task.feature_names, scenarios=scenarios)
    run.json(to_data(shift), Artifact.SHIFT)
    run.metrics({"shift/distance": shift.distance, "shift/p_value": shift.p_value})
    run.tag({Tag.SHIFT: "shifted" if shift.shifted else "alike"})
    return shift


def starting_policies(run: StageRun, policy: StoredPolicy, seeds: Sequence[int]) -> dict[int, StoredPolicy]:
    """Seed -> the certified clone it starts from: of a pretrain run the clone of the same seed, where it has several.

    A pretrain run with one clone, or the run of a single clone, starts every seed. Raises BadInput for a seed without
    a clone.
    """
    if policy.run_id is None:
        _require_certificate(run, policy)
    clones = clones_by_seed(run.client, policy)
    if len(clones) <= 1:
        starts = dict.fromkeys(seeds, next(iter(clones.values()), policy))
    else:
        missing = [seed for seed in seeds if seed not in clones]
        if missing:
            raise BadInput(
                f"seeds: {policy.reference} has no clone of seed {missing[0]}; it has clones of {sorted(clones)}: "
                "use those seeds, or run pretrain with more"
            )
        starts = {seed: clones[seed] for seed in seeds}
    for start in {start.run_id: start for start in starts.values()}.values():
        _require_certificate(run, start)
    return starts


def _require_certificate(run: StageRun, policy: StoredPolicy) -> None:
    """Hold the policy's files to the certificate that `pretrain` left in its run. Raises BadInput."""
    if policy.run_id is None:
        raise BadInput(f"policy {policy.reference!r} has no transfer certificate; give the run id of a pretrain run")
    text = read_text_artifact(run.client, policy.run_id, Artifact.CERTIFICATE)
    if text is None:
        raise BadInput(
            f"policy of {policy.reference} has no transfer certificate ({Artifact.CERTIFICATE}); only a policy that "
            "pretrain certified can be fine-tuned: mlflow run . -e pretrain"
        )
    Transfer.from_json(text).verify(str(policy.folder))
