"""The trainings of a group, read back for comparison: finished, matched, and equal in all but their initial weights."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.config.loading import parse_json, validate
from pipeline.errors import BadInput, shortened
from pipeline.learning.jobs import TrainingResult
from pipeline.names import ARMS, CONFIG_PARAM_PREFIX, REUSED_PREFIX, Arm, Artifact, Metric, Tag, lineage_run_tag
from pipeline.play.evaluation import EpisodeRecords, episode_figures, point_figures
from pipeline.statistics.comparison import UpfrontCost
from pipeline.tracking.content_key import digest_of
from pipeline.tracking.lineage import sources
from pipeline.tracking.liveness import idle_seconds
from pipeline.tracking.models import StoredPolicy, find_policy
from pipeline.tracking.runs import get_run, latest_run, recorded, search, seed_of, stage_run_of, tag_of

GROUP_NAME_LIMIT = 200
# what was done before the first fine-tuning; a repaired dataset states the steps of the one it replaces as its own
UPSTREAM_ROLES = ("expert", "gate", "dataset", "pretrain", "policy")
KEPT = (Metric.SUCCESS, Metric.COLLISION, Metric.RETURN)  # of every episode of every evaluation
NO_EXPERT = ("promote", "collect", "pretrain")  # stages that spend steps on something else than an expert


@dataclass(frozen=True)
class ArmRun:
    """One training of an arm, with the evaluations it left."""

    run: Run
    seed: int
    steps: np.ndarray  # (n,) int64 environment steps of the evaluations
    figures: dict[str, np.ndarray]  # figure -> (n,) float64
    episodes: dict[str, np.ndarray]  # figure -> (n, E) float64 of those of `KEPT`; none of an older record
    final: dict[str, np.ndarray]  # figure -> (E,) float64: fresh episodes of the training set

    @property
    def content(self) -> str:
        """A digest of what the training came to."""
        curves, final = ({n: v.tolist() for n, v in of.items()} for of in (self.figures, self.final))
        measured = [self.steps.tolist(), curves, final]
        return digest_of([tag_of(self.run, Tag.POLICY_DIGEST), repr(measured)])


@dataclass(frozen=True)
class Group:
    """The trainings of a group by arm, and the stage runs they belong to."""

    name: str
    arms: dict[str, tuple[ArmRun, ...]]
    finetune: Run
    baseline: Run


def find_group(client: MlflowClient, reference: str, task: str) -> Group:
    """The group of that name, or of the newest finished fine-tuning for `latest`.

    Raises BadInput, also when its arms differ in anything but initial weights: that comparison does not happen.
    """
    if reference == "latest":
        newest = latest_run(client, "group", **{Tag.STAGE: "finetune", Tag.TASK: task})
        reference = tag_of(newest, Tag.GROUP)
    if not reference.replace("-", "").replace("_", "").isalnum() or len(reference) > GROUP_NAME_LIMIT:
        raise BadInput(f"group {shortened(reference)}: a group is letters, digits, - and _; or 'latest'")
    stages = {stage: _stage_run(client, stage, reference, task) for stage in ("baseline", "finetune")}
    runs = [run for stage in stages.values() for run in trainings(client, stage)]
    ours, theirs = (stages[stage].data for stage in ("baseline", "finetune"))
    if ours.tags.get(Tag.TRAINING_DIGEST) != theirs.tags.get(Tag.TRAINING_DIGEST):
        settings = [key for key in ours.params.keys() | theirs.params.keys() if key.startswith(CONFIG_PARAM_PREFIX)]
        different = sorted(key for key in settings if ours.params.get(key) != theirs.params.get(key))
        where = "; ".join(
            f"{key.removeprefix(CONFIG_PARAM_PREFIX)}: {ours.params.get(key)} and {theirs.params.get(key)}"
            for key in different
        )
        raise BadInput(
            f"group {reference!r}: its arms differ in more than initial weights: baseline and finetune differ in "
            f"{where or 'the task file'}; train both arms with one config"
        )
    if ours.tags.get(Tag.SCALING) != theirs.tags.get(Tag.SCALING):
        raise BadInput(
            f"group {reference!r}: its arms differ in more than initial weights: the policies of baseline and finetune "
            "scale observations or actions differently; run baseline with those of the clones: "
            f"-P policy={started_from(stages['finetune'])}"
        )
    for run in runs:
        if run.info.status != "FINISHED":
            raise BadInput(
                f"group {reference!r}: run {run.info.run_id} ({run.data.tags.get(Tag.ARM)} seed "
                f"{run.data.tags.get(Tag.SEED)}) is {run.info.status}, not FINISHED; wait for it or train it again"
            )
    arms = {
        arm: tuple(
            sorted((read_training(client, run) for run in runs if tag_of(run, Tag.ARM) == arm), key=lambda r: r.seed)
        )
        for arm in dict.fromkeys((*ARMS, *sorted(tag_of(run, Tag.ARM) for run in runs)))
    }
    for arm, stage in ((Arm.SCRATCH, "baseline"), (Arm.PRETRAINED, "finetune")):
        if not arms[arm]:
            raise BadInput(
                f"group {reference!r}: {stage} run {stages[stage].info.run_id} has no trainings of arm {arm!r} any "
                "more: bring them back (mlflow runs restore --run-id <run>), or delete that run too and train again"
            )
    return Group(reference, {arm: members for arm, members in arms.items() if members}, **stages)


def started_from(finetune: Run) -> str:
    """Id of the run whose policies, clones as a rule, its seeds started from."""
    return finetune.data.tags.get(lineage_run_tag("policy")) or tag_of(finetune, lineage_run_tag("pretrain"))


def common_group(client: MlflowClient, stage_runs: Sequence[Run | None]) -> str | None:
    """The group whose comparison would read exactly these runs of its stages; None when there is no such group."""
    groups = set()
    for run in stage_runs:
        if run is None:
            return None
        stage, group, task = (tag_of(run, key) for key in (Tag.STAGE, Tag.GROUP, Tag.TASK))
        newest = _stage_run(client, stage, group, task)
        groups.add(group if newest.info.run_id == run.info.run_id else None)
    return groups.pop() if len(groups) == 1 else None


def upfront_cost(client: MlflowClient, group: Group) -> UpfrontCost | None:
    """What was spent before the first fine-tuning, from the runs that the lineage names, and wall times of all stages.

    Of an imported expert it is what its file says; None where that says nothing.

    All generations count, each run once: where a clone became the expert that the next demonstrations are of, so do the
    expert, the recording and the gate behind that clone. The run of a single seed is part of its stage's run where that
    is named too, and counts alone where it is not. What a search for settings took is not known here. A stage that took
    over trainings took its own time and theirs, one after the other.
    """
    before = sources(client, group.finetune, UPSTREAM_ROLES)
    ids = {run.info.run_id for run in before}
    steps, seconds, evaluations = Counter[str](), defaultdict[str, float](float), Counter[str]()
    for run in before:
        if run.data.tags.get(MLFLOW_PARENT_RUN_ID) in ids:
            continue
        stage = run.data.tags.get(Tag.STAGE, "").removesuffix("_seed")
        stage = stage if stage in NO_EXPERT else "train_expert"  # whatever else made a policy that demonstrated
        seconds[stage] += _duration(run)
        evaluations[stage] += int(run.data.metrics.get(Metric.EVALUATION_STEPS, 0))
        spent = run.data.metrics.get(Metric.ENVIRONMENT_STEPS)
        if stage == "promote" and Tag.POLICY_DIGEST in run.data.tags:  # it imported what it judged
            if spent is None:
                return None
            stage = "train_expert"
        steps[stage] += int(spent or 0)
    for stage, run in (("baseline", group.baseline), ("finetune", group.finetune)):
        reused = _reused(run)
        taken_over = [
            member.run for members in group.arms.values() for member in members if member.run.info.run_id in reused
        ]
        seconds[stage] = _duration(run) + sum(_duration(training) for training in taken_over)
    return UpfrontCost(
        expert_steps=steps["train_expert"],
        demonstration_steps=steps["collect"],
        imitation_steps=steps["pretrain"],
        evaluation_steps=evaluations.total(),
        evaluations=dict(evaluations),
        wall_seconds=dict(seconds),
    )


def trainings(client: MlflowClient, stage_run: Run) -> list[Run]:
    """The trainings of a run of `baseline` or `finetune`: its own and those that it took over, whatever their status.

    A failed attempt that was repeated under a newer stage run is not part of the newer one. Nor is one that the same
    stage run began anew, because something that it is made from had changed when the stage went on.
    """
    stage = f"{stage_run.data.tags[Tag.STAGE]}_seed"
    begun = search(client, {MLFLOW_PARENT_RUN_ID: stage_run.info.run_id, Tag.STAGE: stage}, status=None)
    begun.sort(key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
    what = (Tag.ARM, Tag.SEED, Tag.LINEAGE_DATASET)
    own = {tuple(run.data.tags.get(tag) for tag in what): run for run in begun}.values()
    taken_over = (get_run(client, run_id, "training") for run_id in sorted(_reused(stage_run)))
    return [*own, *(run for run in taken_over if run.info.lifecycle_stage == "active")]


def _reused(run: Run) -> set[str]:
    """Ids of the trainings that a stage run took over."""
    return {value for key, value in run.data.tags.items() if key.startswith(REUSED_PREFIX)}


def _duration(run: Run) -> float:
    """Wall time of a run in seconds, without what lay between a kill and the same command; 0 for one not ended."""
    if run.info.end_time is None:
        return 0.0
    return max(0.0, (run.info.end_time - run.info.start_time) / 1_000 - idle_seconds(run))


def policy_of(client: MlflowClient, run: Run) -> StoredPolicy:
    """The best checkpoint of a training, verified."""
    return find_policy(client, run.info.run_id, tag_of(run, Tag.TASK), {})


def seeds_beside(client: MlflowClient, run: Run) -> dict[int, StoredPolicy]:
    """Seed -> policy of all that was trained, or cloned, together with what a run holds: of its stage and arm."""
    of_stage = stage_run_of(client, run)
    if of_stage.data.tags.get(Tag.STAGE) not in ("train_expert", "pretrain", "baseline", "finetune"):
        return {}
    arm = run.data.tags.get(Tag.ARM)
    beside = [one for one in trainings(client, of_stage) if one.data.tags.get(Tag.ARM) == arm]
    finished = {seed_of(one): one for one in beside if one.info.status == "FINISHED"}
    return {seed: policy_of(client, finished[seed]) for seed in sorted(finished)}


def _stage_run(client: MlflowClient, stage: str, group: str, task: str) -> Run:
    found = search(client, {Tag.GROUP: group, Tag.STAGE: stage, Tag.TASK: task}, limit=1)
    if not found:
        raise BadInput(
            f"group {group!r} has no finished {stage} of task {task!r}; run it: "
            f"mlflow run . -e {stage} --env-manager local -P group={group}"
        )
    return found[0]


def evaluations_record(result: TrainingResult) -> dict[str, Any]:
    """Every evaluation's figures, its episodes' outcomes and returns, and all of the final one, as plain JSON data."""
    played = [point.records.metrics for point in result.evaluations]
    return {
        "seed": result.seed,
        "evaluations": [{"timestep": p.timestep, "figures": point_figures(p.records)} for p in result.evaluations],
        "episodes": {
            name: [[int(v) if v.is_integer() else v for v in metrics[name].tolist()] for metrics in played]
            for name in KEPT
            if name in played[0]
        },
        "final_figures": point_figures(result.final),
        "final": records_data(result.final),
    }


def records_data(records: EpisodeRecords) -> dict[str, Any]:
    """Episode records as plain JSON data: scenario, seed and every metric, one list each, in order."""
    return {
        "scenario": [episode.scenario for episode in records.episodes],
        "seed": [episode.seed for episode in records.episodes],
        "metrics": {name: [float(v) for v in values] for name, values in records.metrics.items()},
    }


def read_evaluations(client: MlflowClient, run: Run) -> dict[str, Any]:
    """What `evaluations_record` wrote down of a training. Raises BadInput when it is missing or anything else."""
    source = f"{Artifact.EVALUATIONS} of run {run.info.run_id}"
    data: dict[str, Any] = parse_json(recorded(client, run, Artifact.EVALUATIONS), source)
    validate(_Record, data, source)
    return data


@dataclass(frozen=True)
class _Point:
    timestep: int
    figures: dict[str, float]


@dataclass(frozen=True)
class _Record:
    seed: int
    evaluations: tuple[_Point, ...]
    final_figures: dict[str, float]
    final: dict[str, Any]
    episodes: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)  # metric -> (n, E)


def read_training(client: MlflowClient, run: Run) -> ArmRun:
    """The evaluations that a training left in its run. Raises BadInput when they are missing or unreadable."""
    data = read_evaluations(client, run)
    points = data["evaluations"]
    try:
        figures = {
            figure: np.array([point["figures"][figure] for point in points], np.float64)
            for figure in points[0]["figures"]
        }
        steps = np.array([point["timestep"] for point in points], np.int64)
        episodes = episode_figures(data.get("episodes", {}))
        if any(values.ndim != 2 or len(values) != len(steps) for values in episodes.values()):
            raise LookupError("episodes of every evaluation")
        final = episode_figures(data["final"]["metrics"])
        if not final or {values.shape for values in final.values()} != {(len(data["final"]["seed"]),)}:
            raise LookupError("final episodes")
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise BadInput(
            f"{Artifact.EVALUATIONS} of run {run.info.run_id} holds no curve: {shortened(str(error))}; train it again"
        ) from None
    return ArmRun(run, seed_of(run), steps, figures, episodes, final)
