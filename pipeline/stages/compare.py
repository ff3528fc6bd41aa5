"""`compare`: both arms of a group over matched seeds: statistics, verdict, report."""

from collections.abc import Mapping
from datetime import UTC, datetime

from pipeline.config.loading import flatten, load_task, to_data
from pipeline.config.stages import Compare, Finetune
from pipeline.config.task import TaskConfig
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.evaluation import point_figures, run_episodes, summarise
from pipeline.learning.callbacks import MINIMISED
from pipeline.learning.ppo import final_episodes
from pipeline.names import CONTROLS, Arm, Artifact, Metric, Tag, lineage_run_tag
from pipeline.policies import act_function, load_policy
from pipeline.report.comparison import build_report
from pipeline.report.context import LineageNode, ReferencePolicy, ReportContext, RunLink, SettingDifference
from pipeline.stages import StageOutcome
from pipeline.statistics.comparison import Comparison, ComparisonSettings, RunData
from pipeline.statistics.comparison import compare as compare_arms
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage
from pipeline.tracking.groups import Group, find_group, policy_of, upfront_cost
from pipeline.tracking.models import StoredPolicy, find_policy
from pipeline.tracking.provenance import environment_record
from pipeline.tracking.runs import StageRun, read_config

UPSTREAM = ("group",)


def run(run: StageRun, config: Compare, upstream: Mapping[str, str]) -> StageOutcome:
    task_config = load_task(config.task)
    group = find_group(run.client, upstream.get("group", "latest"), task_config.name)
    trained = read_config(run.client, group.finetune, Finetune)
    task = Task(task_config, trained.training.environment)
    run.record_config(config, task_config, {"group": group.name})
    run.tag({Tag.GROUP: group.name, **lineage.from_runs({"baseline": group.baseline, "finetune": group.finetune})})
    runs = arm_data(run, task, group, trained)
    settings = comparison_settings(config, task_config, group, trained)
    comparison = compare_arms(runs, settings, upfront_cost(run.client, group.finetune))
    _log(run, comparison, report_context(run, task, group, trained))
    ratio = comparison.ratio
    return StageOutcome(
        (
            f"compare: {comparison.verdict}: ratio of timesteps to target {ratio.value:.3f} "
            f"[{ratio.low:.3f}, {ratio.high:.3f}] over {len(comparison.pairs)} matched seeds; "
            f"target {config.ratio_target:g} {'met' if comparison.target_met else 'NOT met'}",
            *(f"  {reason}" for reason in comparison.reasons),
            f"  report: {run.artifact_place(Artifact.REPORT)}/report.html (run {run.run_id})",
        ),
        verdict=comparison.target_met,
        outputs={"report": run.run_id},
    )


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
        minimised=frozenset(MINIMISED),
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
        lineage=tuple(_lineage_node(node, chain) for node in chain.nodes),
        runs=tuple(
            RunLink(arm, member.seed, member.run.info.run_id)
            for arm, members in group.arms.items()
            for member in members
        ),
        commands=(
            f"mlflow run . -e baseline -P group={group.name}",
            f"mlflow run . -e finetune -P group={group.name} "
            f"-P policy={group.finetune.data.tags[lineage_run_tag('pretrain')]}",
            f"mlflow run . -e compare -P group={group.name}",
        ),
        versions=record["packages"],
        commit=record["git"]["commit"],
        dirty=record["git"]["dirty"],
        machine=record["platform"],
    )


def _holdout_episodes(task: Task, scenario_set: str, count: int) -> tuple[Episode, ...]:
    return task.episodes(scenario_set, 0, count, Purpose.EVALUATE)


def _references(run: StageRun, task: Task, group: Group, trained: Finetune) -> tuple[ReferencePolicy, ...]:
    """The expert and the clone on the very episodes that the arms are measured on at their end."""
    training_set = trained.training.scenario_set
    sets = {training_set: final_episodes(task, training_set, trained.training.evaluation, trained.final_episodes)}
    sets |= {name: _holdout_episodes(task, name, trained.final_episodes) for name in task.config.holdout_sets}
    found: list[ReferencePolicy] = []
    for name, policy in _reference_policies(run, task, group).items():
        act = act_function(load_policy(policy.folder))
        for scenario_set, episodes in sets.items():
            summary = summarise(run_episodes(task, act, episodes))
            found.append(ReferencePolicy(name, scenario_set, summary, len(episodes)))
    return tuple(found)


def _reference_policies(run: StageRun, task: Task, group: Group) -> dict[str, StoredPolicy]:
    tags = group.finetune.data.tags
    policies = {"clone": find_policy(run.client, tags[lineage_run_tag("pretrain")], task.config.name, {})}
    if Tag.LINEAGE_EXPERT in tags:
        policies = {"expert": find_policy(run.client, tags[Tag.LINEAGE_EXPERT], task.config.name, {}), **policies}
    return policies


def _differences(group: Group) -> tuple[SettingDifference, ...]:
    """Parameters in which the two stage runs differ; settings of training cannot, or the group would be refused."""
    scratch, pretrained = group.baseline.data.params, group.finetune.data.params
    keys = sorted(key for key in scratch.keys() | pretrained.keys() if scratch.get(key) != pretrained.get(key))
    rows = [SettingDifference(key, scratch.get(key, "–"), pretrained.get(key, "–")) for key in keys]
    policy = group.finetune.data.tags[lineage_run_tag("pretrain")]
    return (SettingDifference("initial weights", "fresh, from the seed", f"clone of run {policy}"), *rows)


def _lineage_node(node: lineage.Node, chain: lineage.Lineage) -> LineageNode:
    parents = tuple(source for source, target in chain.edges if target == node.run_id)
    return LineageNode(node.run_id, node.stage, node.title, f"run {node.run_id}", parents=parents)


def _log(run: StageRun, comparison: Comparison, context: ReportContext) -> None:
    for name, content in build_report(comparison, context).items():
        path = run.folder / Artifact.REPORT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run.file(run.folder / Artifact.REPORT, Artifact.REPORT)
    figures = {
        Metric.RATIO: comparison.ratio.value,
        f"{Metric.RATIO}_ci_low": comparison.ratio.low,
        f"{Metric.RATIO}_ci_high": comparison.ratio.high,
        "sample_efficiency/median_ratio": comparison.median.estimate.value,
        "sample_efficiency/matched_seeds": len(comparison.pairs),
    }
    run.metrics(figures)
    for pair in comparison.pairs:
        run.metrics(
            {
                f"{Metric.TIMESTEPS_TO_TARGET}/scratch": pair.baseline.steps,
                f"{Metric.TIMESTEPS_TO_TARGET}/pretrained": pair.pretrained.steps,
            },
            step=pair.seed,
        )
    run.describe(f"{comparison.verdict}: ratio {comparison.ratio.value:.3f}")
