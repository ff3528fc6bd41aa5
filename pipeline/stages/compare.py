"""`compare`: both arms of a group over matched seeds: statistics, verdict, report."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.config.loading import flatten, load_task, parse_json, to_data, validate
from pipeline.config.stages import Compare, Finetune
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.learning.schedule import final_episodes
from pipeline.names import CONTROLS, Arm, Artifact, Metric, Resume, Tag, lineage_run_tag
from pipeline.play.demonstrators import Actor, as_policy_sees
from pipeline.play.evaluation import point_figures, run_episodes, summarise, with_intervals
from pipeline.play.filming import film
from pipeline.play.rollouts import from_actor
from pipeline.report.clips import Clip, side_by_side, to_mp4
from pipeline.report.comparison_report import build_report
from pipeline.report.context import Animation, LineageNode, ReferencePolicy, ReportContext, RunLink, SettingDifference
from pipeline.stages import StageOutcome, report_link
from pipeline.statistics.comparison import Comparison, ComparisonSettings, Regression, RunData, measure_regression
from pipeline.statistics.comparison import compare as compare_arms
from pipeline.statistics.shift import Shift
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage
from pipeline.tracking.content_key import report_code
from pipeline.tracking.datasets import StoredDataset, demonstrator_of, fetch_dataset, log_dataset_input
from pipeline.tracking.groups import Group, find_group, policy_of, started_from, upfront_cost
from pipeline.tracking.host import environment_record
from pipeline.tracking.models import StoredPolicy, find_policy
from pipeline.tracking.reuse import report_digest
from pipeline.tracking.runs import get_run, read_config, read_text_artifact, tag_of
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import run_address

UPSTREAM = ("group",)
PLAYBACK_SEED = 77
PLAYBACK_FPS = 10.0
MOST_FRAMES = 300  # of a film in the report; one of a longer episode shows fewer of its steps
MOST_PIXELS = 360  # width and height of each picture in it


@dataclass(frozen=True)
class Evidence:
    """What the store has of a group, read once."""

    group: Group
    trained: Finetune  # the settings of both arms
    task: Task  # as both arms saw it
    dataset: StoredDataset
    clones: tuple[StoredPolicy, ...]  # what every pre-trained seed started from: a clone of its own, or one for all

    def episodes(self, scenario_set: str) -> tuple[Episode, ...]:
        """On which policies are measured here: for the training set those that the arms were measured on at the end."""
        count, training = self.trained.final_episodes, self.trained.training
        if scenario_set == training.scenario_set:
            return final_episodes(self.task, scenario_set, training.evaluation, count)
        return self.task.episodes(scenario_set, 0, count, Purpose.EVALUATE)

    def figures(self, policy: StoredPolicy, scenario_set: str) -> dict[str, float]:
        """Means and rates of a policy that sees what the arms see."""
        return point_figures(run_episodes(self.task, policy.acts(), self.episodes(scenario_set)))


def inputs(run: StageRun, config: Compare, upstream: Mapping[str, str]) -> dict[str, str]:
    return _inputs(find_group(run.client, upstream.get("group", "latest"), load_task(config.task).name))


def _inputs(group: Group) -> dict[str, str]:
    """What every training came to, what came before them all, and the code that makes a report of it."""
    trained = {f"{arm} seed {m.seed}": m.content for arm, members in group.arms.items() for m in members}
    return {**trained, **lineage.digests_behind(group.finetune), "report": report_code()}


def run(run: StageRun, config: Compare, upstream: Mapping[str, str]) -> StageOutcome:
    task = load_task(config.task)
    group = find_group(run.client, upstream.get("group", "latest"), task.name)
    trained = read_config(run.client, group.finetune, Finetune)
    seen = Task(task, trained.training.environment, trained.training.use_camera)
    run.record_config(config, task, _inputs(group))
    run.tag({Tag.GROUP: group.name, **lineage.from_runs({"baseline": group.baseline, "finetune": group.finetune})})
    taints = lineage.inherit_taint(run)
    dataset = fetch_dataset(get_run(run.client, tag_of(group.finetune, lineage_run_tag("dataset")), "dataset run"))
    log_dataset_input(run, dataset.metadata, dataset.run_id, "imitated")
    shared = started_from(group.finetune)
    started = [member.run.data.tags.get(lineage_run_tag("policy"), shared) for member in group.arms[Arm.PRETRAINED]]
    clones = {run_id: find_policy(run.client, run_id, task.name, {}) for run_id in dict.fromkeys(started)}
    evidence = Evidence(group, trained, seen, dataset, tuple(clones[run_id] for run_id in started))
    steps = group.arms[Arm.SCRATCH][0].steps
    if len(steps) < 2:
        raise BadInput(f"group {group.name!r}: its trainings were evaluated once only; nothing can be compared")
    settings = ComparisonSettings(
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
    comparison = compare_arms(arm_data(run, evidence), settings, upfront_cost(run.client, group))
    regressions = find_regressions(run, evidence, settings)
    animations = side_by_side_animations(run, evidence, config.playback_episodes) if seen.renders else None
    report = build_report(comparison, report_context(run, evidence, taints, regressions, animations))
    _log(run, comparison, report)
    known = "is not known, since no run met the target,"
    if not comparison.unanswered:
        ratio = comparison.ratio
        known = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return StageOutcome(
        (
            f"compare: {comparison.verdict}: ratio of timesteps to target {known} "
            f"over {len(comparison.pairs)} matched seeds; "
            f"target {config.ratio_target:g} {'met' if comparison.target_met else 'NOT met'}",
            *(f"  {reason}" for reason in comparison.reasons),
            *(
                f"  {one.arm}: {one.ratio.value:.3f} [{one.ratio.low:.3f}, {one.ratio.high:.3f}] of the timesteps, "
                f"final {one.difference.value:+.3f} [{one.difference.low:+.3f}, {one.difference.high:+.3f}]"
                for one in comparison.ranking
            ),
            *(f"  TAINTED: {reason}" for reason in taints),
            f"  report: {run.artifact_place(Artifact.REPORT)}/report.html (run {run.run_id})",
        ),
        verdict=comparison.target_met,
        outputs={"report": run.run_id},
        see=report_link(run, run.run_id),
    )


def arm_data(run: StageRun, evidence: Evidence) -> dict[str, list[RunData]]:
    """Every arm's runs; best checkpoints, but those of controls, also play the hold-out scenarios, here and now."""
    trained, data = evidence.trained, dict[str, list[RunData]]()
    for arm, members in evidence.group.arms.items():
        budget = trained.control_timesteps if arm in CONTROLS else trained.training.total_timesteps
        for member in members:
            final = {trained.training.scenario_set: member.final}
            if arm not in CONTROLS:
                policy = policy_of(run.client, member.run)
                final |= {name: evidence.figures(policy, name) for name in evidence.task.config.holdout_sets}
            data.setdefault(arm, []).append(RunData(member.seed, member.steps, member.figures, final, budget))
    return data


def find_regressions(run: StageRun, evidence: Evidence, settings: ComparisonSettings) -> tuple[Regression, ...]:
    """What fine-tuning on other scenarios did to the demonstrated ones: clone against fine-tuned policies, there."""
    demonstrated, figure = evidence.dataset.metadata.scenario_set, Metric.SUCCESS_RATE
    if demonstrated == evidence.trained.training.scenario_set:
        return ()
    played = {clone.digest: clone for clone in evidence.clones}  # often one for all seeds
    success = {digest: evidence.figures(clone, demonstrated)[figure] for digest, clone in played.items()}
    before = [success[clone.digest] for clone in evidence.clones]
    tuned = [policy_of(run.client, member.run) for member in evidence.group.arms[Arm.PRETRAINED]]
    after = [evidence.figures(policy, demonstrated)[figure] for policy in tuned]
    found = measure_regression(demonstrated, figure, before, after, len(played), settings)
    if found.regressed:
        run.tag({Tag.REGRESSION: f"{found.figure} on {demonstrated}: {found.before:.3f} to {found.after.value:.3f}"})
    return (found,)


def side_by_side_animations(run: StageRun, evidence: Evidence, count: int) -> tuple[Animation, ...]:
    """The same episodes under the policy from scratch, the clone and the fine-tuned policy of the first seed."""
    if not count:
        return ()
    scratch, pretrained = (evidence.group.arms[arm][0] for arm in (Arm.SCRATCH, Arm.PRETRAINED))
    acts = {
        "from scratch": policy_of(run.client, scratch.run).acts(),
        "clone": evidence.clones[0].acts(),
        "fine-tuned": policy_of(run.client, pretrained.run).acts(),
    }
    animations = []
    training_set = evidence.trained.training.scenario_set
    for episode in evidence.task.episodes(training_set, PLAYBACK_SEED, count, Purpose.EVALUATE):
        clips = []
        for name, act in acts.items():
            choose = from_actor(act, evidence.task.action_space)
            seen = film(evidence.task, episode, choose, MOST_FRAMES, MOST_PIXELS)
            statistics = {"return": f"{seen.episode_return:.2f}"}
            clips.append(Clip(name, seen.frames, statistics, seen.events, steps=seen.steps))
        caption = f"scenario {episode.scenario}, episode seed {episode.seed}, policies of seed {scratch.seed}"
        video = to_mp4(side_by_side(clips), PLAYBACK_FPS)
        animations.append(Animation(f"One episode of {episode.scenario}", caption, "video/mp4", video))
    return tuple(animations)


def report_context(
    run: StageRun,
    evidence: Evidence,
    taints: tuple[str, ...],
    regressions: tuple[Regression, ...],
    animations: tuple[Animation, ...] | None,
) -> ReportContext:
    """Everything the report shows besides the numbers of the comparison."""
    group, trained = evidence.group, evidence.trained
    members = [(arm, member) for arm, of_arm in group.arms.items() for member in of_arm]
    # settings of training cannot differ, or the group would have been refused
    scratch, pretrained = group.baseline.data.params, group.finetune.data.params
    keys = sorted(key for key in scratch.keys() | pretrained.keys() if scratch.get(key) != pretrained.get(key))
    policy = started_from(group.finetune)
    weights = SettingDifference("initial weights", "fresh, from the seed", f"policy of run {policy}")
    chain = lineage.trace(run.client, run.run_id, up=True)
    parents: dict[str, tuple[str, ...]] = {}
    for source, target in chain.edges:
        parents[target] = (*parents.get(target, ()), source)
    metadata = evidence.dataset.metadata
    resumed = {member.run.data.tags.get(Tag.RESUME) for _, member in members}
    record = environment_record()
    again, download = f"{group.name}-again", "mlflow artifacts download --artifact-path config.yaml"
    success = evidence.dataset.trajectories.metrics.get(Metric.SUCCESS)
    return ReportContext(
        task=evidence.task.config.name,
        group=group.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        taints=taints,
        regressions=regressions,
        animations=animations,
        differences=(
            weights,
            *(SettingDifference(key, scratch.get(key, "–"), pretrained.get(key, "–")) for key in keys),
        ),
        shared_settings=flatten(to_data(trained)["training"]),
        references=_references(run, evidence),
        shift=_shift(run, group),
        dataset={
            "dataset": metadata.dataset_id,
            "episodes": f"{metadata.episodes:,}",
            "environment steps": f"{metadata.steps:,}",
            "scenario set": metadata.scenario_set,
            "demonstrator": metadata.origin,
            "execution noise": f"{metadata.noise_std:g} of the half action range; labels are clean",
            "success": "not known" if success is None else f"{success.mean():.3f}",
            "content digest": metadata.content_digest,
            "imitation": get_run(run.client, policy, "clones").data.tags.get(Tag.IMITATION, "not judged"),
        },
        lineage=tuple(
            LineageNode(
                node.run_id, node.stage, node.title, f"run {node.run_id}",
                run_address(get_run(run.client, node.run_id, "lineage")), parents.get(node.run_id, ()),
            )
            for node in chain.nodes
        ),
        runs=tuple(RunLink(arm, m.seed, m.run.info.run_id, run_address(m.run)) for arm, m in members),
        # the trainings again under a name of their own; without `reuse=false` they would be taken over, not trained
        commands=(
            f"git checkout {record['git']['commit']}",
            f"{download} --run-id {group.finetune.info.run_id} --dst-path again/trainings",
            f"{download} --run-id {run.run_id} --dst-path again/compare",
            f"mlflow run . -e baseline -P config=again/trainings/config.yaml -P policy={policy} "
            f"-P group={again} -P reuse=false",
            f"mlflow run . -e finetune -P config=again/trainings/config.yaml -P policy={policy} "
            f"-P group={again} -P reuse=false",
            f"mlflow run . -e compare -P config=again/compare/config.yaml -P group={again}",
        ),
        versions=record["packages"],
        commit=record["git"]["commit"],
        dirty=record["git"]["dirty"],
        machine=record["platform"],
        # the weakest of what the trainings say of themselves
        resume=next((label for label in (Resume.NOT_EXACT, Resume.EXACT) if label in resumed), None),
    )  # fmt: skip


def _references(run: StageRun, evidence: Evidence) -> tuple[ReferencePolicy, ...]:
    """Who demonstrated and the clone, on the very episodes that the arms are measured on at their end."""
    task, tags = evidence.task, evidence.group.finetune.data.tags
    # demonstrators see numbers also where clones see pictures
    without_camera = Task(task.config, task.environment_kwargs)
    actors: dict[str, tuple[Task, Actor]] = {}
    metadata = evidence.dataset.metadata
    scripted = metadata.demonstrator["kind"] == "scripted"
    if scripted and (script := demonstrator_of(run.client, metadata, without_camera)) is not None:
        actors["script that demonstrated"] = without_camera, script.actor
    if Tag.LINEAGE_EXPERT in tags:
        expert = find_policy(run.client, tags[Tag.LINEAGE_EXPERT], task.config.name, {})
        actors["expert"] = as_policy_sees(without_camera, expert.folder), expert.acts()
    first = evidence.group.arms[Arm.PRETRAINED][0].seed
    actors[f"clone (seed {first})"] = task, evidence.clones[0].acts()
    sets = dict.fromkeys((evidence.trained.training.scenario_set, *task.config.holdout_sets))
    episodes = {name: evidence.episodes(name) for name in sets}
    return tuple(
        ReferencePolicy(name, scenario_set, summarise(run_episodes(seen, actor, chosen)), len(chosen))
        for name, (seen, actor) in actors.items()
        for scenario_set, chosen in episodes.items()
    )


def _shift(run: StageRun, group: Group) -> Shift | None:
    """What the fine-tuning measured before it began; None when nobody could."""
    text = read_text_artifact(run.client, group.finetune.info.run_id, Artifact.SHIFT)
    if text is None:
        return None
    source = f"{Artifact.SHIFT} of run {group.finetune.info.run_id}"
    return validate(Shift, parse_json(text, source), source)


def _log(run: StageRun, comparison: Comparison, report: Mapping[str, bytes]) -> None:
    folder = run.folder / Artifact.REPORT
    for name, content in report.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run.file(folder, Artifact.REPORT)
    run.tag({Tag.REPORT_DIGEST: report_digest(folder), Tag.COMPARISON: str(comparison.verdict)})
    metrics = {"sample_efficiency/matched_seeds": float(len(comparison.pairs))}
    if not comparison.unanswered:
        metrics |= with_intervals({Metric.RATIO: comparison.ratio})
        metrics["sample_efficiency/median_ratio"] = comparison.median.estimate.value
    bill = comparison.bill
    if bill is not None:
        metrics |= {
            "bill/expert_steps": bill.upfront.expert_steps,
            "bill/demonstration_steps": bill.upfront.demonstration_steps,
            "bill/imitation_steps": bill.upfront.imitation_steps,
            "bill/upfront_evaluation_steps": bill.upfront.evaluation_steps,
            "bill/upfront_steps": bill.upfront.steps,
            "bill/baseline_steps_to_target": bill.baseline_steps.value,
            "bill/pretrained_steps_to_target": bill.pretrained_steps.value,
            **with_intervals({"bill/saving_per_run": bill.saving}),
            "bill/total_ratio": bill.total_ratio,
            **{f"bill/wall_seconds/{stage}": seconds for stage, seconds in bill.upfront.wall_seconds.items()},
        }
        if bill.break_even.reuses is not None:  # otherwise nothing is ever paid back
            metrics["bill/break_even_reuses"] = bill.break_even.reuses
    for scenario_set, of_set in comparison.finals.items():  # of the best checkpoints, pre-trained minus scratch
        metrics |= with_intervals({f"final/{scenario_set}/{f.figure}_difference": f.difference for f in of_set})
        for f in of_set:
            if f.figure == comparison.settings.final_figure:
                both = {arm: f.means[arm] for arm in (Arm.SCRATCH, Arm.PRETRAINED)}
                metrics |= with_intervals({f"final/{scenario_set}/{f.figure}_{arm}": m for arm, m in both.items()})
    run.metrics(metrics)
    for pair in comparison.pairs:
        arms = {"scratch": pair.baseline.steps, "pretrained": pair.pretrained.steps}
        run.metrics({f"{Metric.TIMESTEPS_TO_TARGET}/{arm}": steps for arm, steps in arms.items()}, step=pair.seed)
