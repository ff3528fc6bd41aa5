"""`finetune`: PPO from a certified clone, several seeds side by side, with controls of learning rate 0."""

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Finetune
from pipeline.data.observations import flat_rows
from pipeline.errors import BadInput
from pipeline.learning.arms import arm_jobs
from pipeline.names import Artifact, Tag, lineage_run_tag
from pipeline.play.evaluation import record_episodes
from pipeline.stages import StageOutcome, run_arms
from pipeline.statistics.shift import Shift, measure_shift
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import demonstrator_of, fetch_dataset, log_dataset_input
from pipeline.tracking.models import StoredPolicy, find_policy, starting_policies
from pipeline.tracking.runs import get_run
from pipeline.tracking.stage_run import StageRun

UPSTREAM = ("policy", "group")
SHIFT_EPISODES = 100  # that the demonstrator plays in the fine-tuning scenarios
SHIFT_SEED = 999


def inputs(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> dict[str, str]:
    return _read(run, config, upstream)[-1]


def _read(
    run: StageRun, config: Finetune, upstream: Mapping[str, str]
) -> tuple[dict[int, StoredPolicy], dict[str, str], dict[str, str]]:
    """Seed -> the clone it starts from; the lineage of what starts from them; role -> digest of all that is read."""
    policy = find_policy(
        run.client, upstream.get("policy", "latest"), load_task(config.task).name, {Tag.STAGE: "pretrain"}
    )
    lineage.refuse_tainted(run.client, policy, "finetune")
    starts = starting_policies(run.client, policy, config.seeds)
    maker = get_run(run.client, str(policy.run_id), "policy")
    made_from = lineage.from_policy(policy, "pretrain", maker.data.tags)
    if lineage_run_tag("dataset") not in made_from:
        raise BadInput(f"policy {policy.reference} was not made from demonstrations; give a run of pretrain")
    # the clones, and what the shift of distribution is measured against
    digests = {f"policy of seed {seed}": start.digest for seed, start in starts.items()}
    return starts, made_from, {**digests, **lineage.digests_behind(maker)}


def run(run: StageRun, config: Finetune, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.training.environment, config.training.use_camera)
    starts, made_from, digests = _read(run, config, upstream)
    demonstrations = fetch_dataset(get_run(run.client, made_from[lineage_run_tag("dataset")], "dataset run"))
    clones = {seed: start.as_start() for seed, start in starts.items()}
    arms = arm_jobs(config, task, run.folder, clones, demonstrations=demonstrations.in_batches(task))
    run.record_config(config, task.config, digests)
    run.tag(made_from)
    log_dataset_input(run, demonstrations.metadata, demonstrations.run_id, "imitated")
    shift = distribution_shift(run, Task(task.config, config.training.environment), config, made_from)
    tags = {seed: {**made_from, lineage_run_tag("policy"): start.run_id} for seed, start in starts.items()}
    trained = run_arms(run, "finetune", config, task, arms, upstream.get("group"), tags)
    lines = trained.summary
    if shift is None:
        lines += ("  its scenarios were not held against the demonstrations: nobody could play them as those were",)
    elif shift.shifted:
        lines += (
            f"  its scenarios are unlike the demonstrations: distance {shift.distance:.3f} "
            f"(alike would be {shift.expected_distance:.3f}), p = {shift.p_value:.3g}",
        )
    return replace(trained, summary=lines)


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
