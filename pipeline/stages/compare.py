"""`compare`: both arms of a group over matched seeds: statistics, verdict, report."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from pipeline.config.loading import flatten, load_task, parse_json, to_data, validate
from pipeline.config.stages import Compare, Finetune
from pipeline.config.task import TaskConfig
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.learning.schedule import final_episodes
from pipeline.names import CONTROLS, Arm, Artifact, Metric, Resume, Tag, lineage_run_tag
from pipeline.play.demonstrators import Actor, as_policy_sees
from pipeline.play.evaluation import point_figures, run_episodes, summarise
from pipeline.play.filming import film_actor
from pipeline.policies import act_function, load_policy
from pipeline.report.clips import Clip, side_by_side, to_mp4
from pipeline.report.comparison_report import build_report
from pipeline.report.context import Animation, LineageNode, ReferencePolicy, ReportContext, RunLink, SettingDifference
from pipeline.stages import StageOutcome
from pipeline.statistics.comparison import Comparison, ComparisonSettings, Regression, RunData, measure_regression
from pipeline.statistics.comparison import compare as compare_arms
from pipeline.statistics.shift import Shift
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage, taint
from pipeline.tracking.content_key import report_code
from pipeline.tracking.datasets import StoredDataset, demonstrator_of, fetch_dataset
from pipeline.tracking.groups import Group, find_group, policy_of, upfront_cost
from pipeline.tracking.host import environment_record
from pipeline.tracking.models import StoredPolicy, find_policy
from pipeline.tracking.reuse import report_digest
from pipeline.tracking.runs import StageRun, get_run, read_config, read_text_artifact, tag_of
from pipeline.tracking.store import run_address

UPSTREAM = ("group",)
PLAYBACK_SEED = 77
PLAYBACK_FPS = 10.0


def inputs(run: StageRun, config: Compare, upstream: Mapping[str, str]) -> dict[str, str]:
    return _inputs(find_group(run.client, upstream.get("group", "latest"), load_task(config.task).name))


def run(run: StageRun, config: Compare, upstream: Mapping[str, str]) -> StageOutcome:
    task_config = load_task(config.task)
    group = find_group(run.client, upstream.get("group", "latest"), task_config.name)
    trained = read_config(run.client, group.finetune, Finetune)
    task = Task(task_config, trained.training.environment, trained.training.use_camera)
    run.record_config(config, task_config, _inputs(group))
    run.tag({Tag.GROUP: group.name, **lineage.from_runs({"baseline": group.baseline, "finetune": group.finetune})})
    taints = taint.inherit(run)
    runs = arm_data(run, task, group, trained)
    settings = comparison_settings(config, task_config, group, trained)
    comparison = compare_arms(runs, settings, upfront_cost(run.client, group))
    regressions = find_regressions(run, task, group, trained, settings)
    context = replace(
        report_context(run, task, group, trained),
        taints=taints,
        regressions=regressions,
        animations=side_by_side_animations(run, config, task, group, trained) if task.renders else None,
    )
    _log(run, comparison, context)
    ratio = comparison.ratio
    known = "is not known, since no run met the target,"
    if not comparison.unanswered:
        known = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return StageOutcome(
        (
            f"compare: {comparison.verdict}: ratio of timesteps to target {known} "
            f"over {len(comparison.pairs)} matched seeds; "
            f"target {config.ratio_target:g} {'met' if comparison.target_met else 'NOT met'}",
            *(f"  {reason}" for reason in comparison.reasons),
            *(f"  TAINTED: {reason}" for reason in taints),
            f"  report: {run.artifact_place(Artifact.REPORT)}/report.html (run {run.run_id})",
        ),
        verdict=comparison.target_met,
        outputs={"report": run.run_id},
    )


def _inputs(group: Group) -> dict[str, str]:
    """What every training came to, what came before them all, and the code that makes a report of it."""
    tags = group.finetune.data.tags
    names: tuple[str, ...] = (Tag.LINEAGE_DATASET_DIGEST, Tag.LINEAGE_EXPERT_DIGEST)
    behind = {name: tags[name] for name in names if name in tags}
    return {f"{arm} seed {m.seed}": m.content for arm, members in group.arms.items() for m in members} | {
        **behind,
        "report": report_code(),
    }


def comparison_settings(config: Compare, task: TaskConfig, group: Group, trained: Finetune) -> ComparisonSettings:
    """What counts as solved: the config's target, or the task's thresholds."""
    steps = group.arms[Arm.SCRATCH][0].steps
    if len(steps) < 2:
        raise BadInput(f"group {group.name!r}: its trainings were evaluated once only; nothing can be compared")
    return ComparisonSettings(
        target=config.target or task.thresholds,
        patience=config.patience,
        evaluation_interval=int(steps[1] - steps[0]),
        ratio_target=config.ratio_target,
        resamples=config.resamples,
        seed=config.seed,
        final_figure=Metric.SUCCESS_RATE,
        training_set=trained.training.scenario_set,
        minimised=tuple(sorted(task.minimised)),
        undirected=(Metric.LENGTH_MEAN,),
    )


def arm_data(run: StageRun, task: Task, group: Group, trained: Finetune) -> dict[str, list[RunData]]:
    """Every arm's runs; the best checkpoints of the two matched arms also play the hold-out scenarios, here and now."""
    holdouts = {name: _holdout_episodes(task, name, trained.final_episodes) for name in task.config.holdout_sets}
    data: dict[str, list[RunData]] = {}
    for arm, members in group.arms.items():
        for member in members:
            final = {trained.training.scenario_set: member.final}
            if arm not in CONTROLS:
                act = act_function(load_policy(policy_of(run.client, member.run).folder))
                final |= {name: point_figures(run_episodes(task, act, e)) for name, e in holdouts.items()}
            budget = trained.control_timesteps if arm in CONTROLS else trained.training.total_timesteps
            data.setdefault(arm, []).append(member.data(budget, final))
    return data


def find_regressions(
    run: StageRun, task: Task, group: Group, trained: Finetune, settings: ComparisonSettings
) -> tuple[Regression, ...]:
    """What fine-tuning on other scenarios did to the demonstrated ones: clone against fine-tuned policies, there."""
    dataset = _dataset(run, group)
    demonstrated = dataset.metadata.scenario_set
    if demonstrated == trained.training.scenario_set:
        return ()
    episodes = _holdout_episodes(task, demonstrated, trained.final_episodes)

    def success(policy: StoredPolicy) -> float:
        records = run_episodes(task, act_function(load_policy(policy.folder)), episodes)
        return point_figures(records)[Metric.SUCCESS_RATE]

    clones = _clones(run, task, group)
    played = {clone.digest: success(clone) for clone in {clone.digest: clone for clone in clones}.values()}
    before = [played[clone.digest] for clone in clones]
    after = [success(policy_of(run.client, member.run)) for member in group.arms[Arm.PRETRAINED]]
    found = measure_regression(demonstrated, Metric.SUCCESS_RATE, before, after, len(played), settings)
    if found.regressed:
        run.tag({Tag.REGRESSION: f"{found.figure} on {demonstrated}: {found.before:.3f} to {found.after.value:.3f}"})
    return (found,)


def side_by_side_animations(
    run: StageRun, config: Compare, task: Task, group: Group, trained: Finetune
) -> tuple[Animation, ...]:
    """The same episodes under the policy from scratch, the clone and the fine-tuned policy of the first seed."""
    first = {arm: group.arms[arm][0] for arm in (Arm.SCRATCH, Arm.PRETRAINED)}
    policies = {
        "from scratch": policy_of(run.client, first[Arm.SCRATCH].run),
        "clone": _clone(run, task, group),
        "fine-tuned": policy_of(run.client, first[Arm.PRETRAINED].run),
    }
    acts = {name: act_function(load_policy(policy.folder)) for name, policy in policies.items()}
    chosen = task.episodes(trained.training.scenario_set, PLAYBACK_SEED, config.playback_episodes, Purpose.EVALUATE)
    animations = []
    for episode in chosen if config.playback_episodes else ():
        films = {name: film_actor(task, episode, act) for name, act in acts.items()}
        clips = [
            Clip(name, film.frames, {"return": f"{film.episode_return:.2f}"}, film.events)
            for name, film in films.items()
        ]
        caption = (
            f"scenario {episode.scenario}, episode seed {episode.seed}, policies of seed {first[Arm.SCRATCH].seed}"
        )
        video = to_mp4(side_by_side(clips), PLAYBACK_FPS)
        animations.append(Animation(f"One episode of {episode.scenario}", caption, "video/mp4", video))
    return tuple(animations)


def report_context(run: StageRun, task: Task, group: Group, trained: Finetune) -> ReportContext:
    """Everything the report shows besides the numbers of the comparison."""
    record = environment_record()
    chain = lineage.upstream(run.client, run.run_id)
    return ReportContext(
        task=task.config.name,
        group=group.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        differences=_differences(group),
        shared_settings=flatten(to_data(trained)["training"]),
        references=_references(run, task, group, trained),
        shift=_shift(run, group),
        dataset=_dataset_facts(_dataset(run, group)),
        lineage=tuple(_lineage_node(run, node, chain) for node in chain.nodes),
        runs=tuple(
            RunLink(arm, member.seed, member.run.info.run_id, run_address(member.run))
            for arm, members in group.arms.items()
            for member in members
        ),
        commands=_commands(run, group, record["git"]["commit"]),
        versions=record["packages"],
        commit=record["git"]["commit"],
        dirty=record["git"]["dirty"],
        machine=record["platform"],
        resume=_resume(group),
    )


def _resume(group: Group) -> str | None:
    """The weakest of what the trainings say of themselves."""
    said = {member.run.data.tags.get(Tag.RESUME) for members in group.arms.values() for member in members}
    return next((label for label in (Resume.NOT_EXACT, Resume.EXACT) if label in said), None)


def _commands(run: StageRun, group: Group, commit: str) -> tuple[str, ...]:
    """The trainings again, under a name of their own; without `reuse=false` they would be taken over, not trained."""
    policy, again = tag_of(group.finetune, lineage_run_tag("pretrain")), f"{group.name}-again"
    download = "mlflow artifacts download --artifact-path config.yaml"
    return (
        f"git checkout {commit}",
        f"{download} --run-id {group.finetune.info.run_id} --dst-path again/trainings",
        f"{download} --run-id {run.run_id} --dst-path again/compare",
        f"mlflow run . -e baseline -P config=again/trainings/config.yaml -P group={again} -P reuse=false",
        f"mlflow run . -e finetune -P config=again/trainings/config.yaml -P policy={policy} "
        f"-P group={again} -P reuse=false",
        f"mlflow run . -e compare -P config=again/compare/config.yaml -P group={again}",
    )


def _holdout_episodes(task: Task, scenario_set: str, count: int) -> tuple[Episode, ...]:
    return task.episodes(scenario_set, 0, count, Purpose.EVALUATE)


def _references(run: StageRun, task: Task, group: Group, trained: Finetune) -> tuple[ReferencePolicy, ...]:
    """Who demonstrated and the clone, on the very episodes that the arms are measured on at their end."""
    training_set = trained.training.scenario_set
    sets = {training_set: final_episodes(task, training_set, trained.training.evaluation, trained.final_episodes)}
    sets |= {name: _holdout_episodes(task, name, trained.final_episodes) for name in task.config.holdout_sets}
    found: list[ReferencePolicy] = []
    for name, (seen, actor) in _reference_actors(run, task, group).items():
        for scenario_set, episodes in sets.items():
            summary = summarise(run_episodes(seen, actor, episodes))
            found.append(ReferencePolicy(name, scenario_set, summary, len(episodes)))
    return tuple(found)


def _reference_actors(run: StageRun, task: Task, group: Group) -> dict[str, tuple[Task, Actor]]:
    """Who acts, and the task as they see it: demonstrators see numbers also where clones see pictures."""
    tags, actors = group.finetune.data.tags, dict[str, tuple[Task, Actor]]()
    without_camera = Task(task.config, task.environment_kwargs)
    metadata = _dataset(run, group).metadata
    scripted = metadata.demonstrator["kind"] == "scripted"
    if scripted and (script := demonstrator_of(run.client, metadata, without_camera)) is not None:
        actors["script that demonstrated"] = without_camera, script.actor
    if Tag.LINEAGE_EXPERT in tags:
        expert = find_policy(run.client, tags[Tag.LINEAGE_EXPERT], task.config.name, {})
        actors["expert"] = as_policy_sees(without_camera, expert.folder), act_function(load_policy(expert.folder))
    first = group.arms[Arm.PRETRAINED][0].seed
    actors[f"clone (seed {first})"] = task, act_function(load_policy(_clone(run, task, group).folder))
    return actors


def _clone(run: StageRun, task: Task, group: Group) -> StoredPolicy:
    """What the first pre-trained seed started from."""
    return _clones(run, task, group)[0]


def _clones(run: StageRun, task: Task, group: Group) -> tuple[StoredPolicy, ...]:
    """What every pre-trained seed started from: a clone of its own, or the one of the pretrain run."""
    shared = tag_of(group.finetune, lineage_run_tag("pretrain"))
    started = [member.run.data.tags.get(lineage_run_tag("policy"), shared) for member in group.arms[Arm.PRETRAINED]]
    found = {run_id: find_policy(run.client, run_id, task.config.name, {}) for run_id in dict.fromkeys(started)}
    return tuple(found[run_id] for run_id in started)


def _dataset(run: StageRun, group: Group) -> StoredDataset:
    return fetch_dataset(get_run(run.client, tag_of(group.finetune, lineage_run_tag("dataset")), "dataset run"))


def _dataset_facts(dataset: StoredDataset) -> dict[str, str]:
    metadata = dataset.metadata
    return {
        "dataset": metadata.dataset_id,
        "episodes": f"{metadata.episodes:,}",
        "environment steps": f"{metadata.steps:,}",
        "scenario set": metadata.scenario_set,
        "demonstrator": metadata.origin,
        "execution noise": f"{metadata.noise_std:g} of the half action range; labels are clean",
        "success": f"{dataset.trajectories.metrics[Metric.SUCCESS].mean():.3f}",
        "content digest": metadata.content_digest,
    }


def _shift(run: StageRun, group: Group) -> Shift | None:
    """What the fine-tuning measured before it began; None when nobody could."""
    text = read_text_artifact(run.client, group.finetune.info.run_id, Artifact.SHIFT)
    if text is None:
        return None
    source = f"{Artifact.SHIFT} of run {group.finetune.info.run_id}"
    return validate(Shift, parse_json(text, source), source)


def _differences(group: Group) -> tuple[SettingDifference, ...]:
    """Parameters in which the two stage runs differ; settings of training cannot, or the group would be refused."""
    scratch, pretrained = group.baseline.data.params, group.finetune.data.params
    keys = sorted(key for key in scratch.keys() | pretrained.keys() if scratch.get(key) != pretrained.get(key))
    rows = [SettingDifference(key, scratch.get(key, "–"), pretrained.get(key, "–")) for key in keys]
    policy = tag_of(group.finetune, lineage_run_tag("pretrain"))
    return (SettingDifference("initial weights", "fresh, from the seed", f"clone of run {policy}"), *rows)


def _lineage_node(run: StageRun, node: lineage.Node, chain: lineage.Lineage) -> LineageNode:
    parents = tuple(source for source, target in chain.edges if target == node.run_id)
    address = run_address(get_run(run.client, node.run_id, "lineage"))
    return LineageNode(node.run_id, node.stage, node.title, f"run {node.run_id}", address, parents)


def _log(run: StageRun, comparison: Comparison, context: ReportContext) -> None:
    for name, content in build_report(comparison, context).items():
        path = run.folder / Artifact.REPORT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run.file(run.folder / Artifact.REPORT, Artifact.REPORT)
    run.tag({Tag.REPORT_DIGEST: report_digest(run.folder / Artifact.REPORT)})
    figures = {"sample_efficiency/matched_seeds": float(len(comparison.pairs))}
    if not comparison.unanswered:
        figures |= {
            Metric.RATIO: comparison.ratio.value,
            f"{Metric.RATIO}_ci_low": comparison.ratio.low,
            f"{Metric.RATIO}_ci_high": comparison.ratio.high,
            "sample_efficiency/median_ratio": comparison.median.estimate.value,
        }
    run.metrics({**figures, **bill_metrics(comparison), **final_metrics(comparison)})
    for pair in comparison.pairs:
        run.metrics(
            {
                f"{Metric.TIMESTEPS_TO_TARGET}/scratch": pair.baseline.steps,
                f"{Metric.TIMESTEPS_TO_TARGET}/pretrained": pair.pretrained.steps,
            },
            step=pair.seed,
        )
    ratio = "not known" if comparison.unanswered else f"{comparison.ratio.value:.3f}"
    run.describe(f"{comparison.verdict}: ratio {ratio}")


def bill_metrics(comparison: Comparison) -> dict[str, float]:
    """The bill as metrics of the run (docs/report-schema.md); no break-even when nothing is ever paid back."""
    bill = comparison.bill
    if bill is None:
        return {}
    metrics: dict[str, float] = {
        "bill/expert_steps": bill.upfront.expert_steps,
        "bill/demonstration_steps": bill.upfront.demonstration_steps,
        "bill/imitation_steps": bill.upfront.imitation_steps,
        "bill/upfront_evaluation_steps": bill.upfront.evaluation_steps,
        "bill/upfront_steps": bill.upfront.steps,
        "bill/baseline_steps_to_target": bill.baseline_steps.value,
        "bill/pretrained_steps_to_target": bill.pretrained_steps.value,
        "bill/saving_per_run": bill.saving.value,
        "bill/saving_per_run_ci_low": bill.saving.low,
        "bill/saving_per_run_ci_high": bill.saving.high,
        "bill/total_ratio": bill.total_ratio,
    }
    if bill.break_even.reuses is not None:
        metrics["bill/break_even_reuses"] = bill.break_even.reuses
    return metrics | {f"bill/wall_seconds/{stage}": s for stage, s in bill.upfront.wall_seconds.items()}


def final_metrics(comparison: Comparison) -> dict[str, float]:
    """Differences of the best checkpoints, pre-trained minus scratch: `final/holdout/success_rate_difference`, ..."""
    metrics: dict[str, float] = {}
    for scenario_set, of_set in comparison.finals.items():
        for figure in of_set:
            name = f"final/{scenario_set}/{figure.figure}_difference"
            difference = figure.difference
            metrics |= {name: difference.value, f"{name}_ci_low": difference.low, f"{name}_ci_high": difference.high}
    return metrics
