"""`compare`: both arms of a group over matched seeds: statistics, verdict, report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from pipeline.config.base import Bound
from pipeline.config.loading import flatten, load_task, parse_json, parse_yaml, to_data, validate
from pipeline.config.stages import Compare, Finetune, FurtherArm
from pipeline.config.task import JUDGED, TaskConfig
from pipeline.config.training import ADAPTIVE, SACTraining
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.learning.adaptive import Decision
from pipeline.learning.schedule import final_episodes
from pipeline.names import CONFIG_PARAM_PREFIX, CONTROLS, START, Arm, Artifact, Metric, Resume, Tag, lineage_run_tag
from pipeline.play.demonstrators import Actor, as_policy_sees
from pipeline.play.evaluation import Counted, episode_figures, run_episodes, summarise, with_intervals
from pipeline.play.scenario_shift import scenario_shift
from pipeline.policies.transfer import Transfer
from pipeline.report.comparison_films import comparison_films, median_of
from pipeline.report.comparison_report import build_report
from pipeline.report.context import (
    Animation,
    LineageNode,
    OtherComparison,
    ReferencePolicy,
    ReportContext,
    RunLink,
    SettingDifference,
    glossary,
)
from pipeline.report.palette import ARM_LABELS
from pipeline.report.progress import ProgressBar
from pipeline.stages import StageOutcome, report_link
from pipeline.statistics.comparison import Comparison, RunCurve
from pipeline.statistics.comparison import compare as compare_arms
from pipeline.statistics.efficiency import BOUNDS
from pipeline.statistics.estimate import Estimate
from pipeline.statistics.finals import Regression, measure_regression
from pipeline.statistics.matched import ComparisonSettings, RunData
from pipeline.statistics.shift import Shift
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage
from pipeline.tracking.content_key import report_code
from pipeline.tracking.datasets import StoredDataset, demonstrator_of, imitated_datasets
from pipeline.tracking.groups import (
    Group,
    find_group,
    policy_of,
    read_evaluations,
    started_from,
    trainings,
    upfront_cost,
)
from pipeline.tracking.host import environment_record
from pipeline.tracking.models import StoredPolicy, find_policy
from pipeline.tracking.reuse import report_digest
from pipeline.tracking.runs import get_run, read_config, read_text_artifact, search, seed_of, tag_of
from pipeline.tracking.stage_run import StageRun
from pipeline.tracking.store import run_address

UPSTREAM = ("group",)


@dataclass(frozen=True)
class Evidence:
    """What the store has of a group, read once."""

    group: Group
    trained: Finetune  # the settings of both arms
    task: Task  # as both arms saw it
    dataset: StoredDataset | None  # None: no demonstrations are behind what the pre-trained arm started from
    clones: tuple[StoredPolicy, ...]  # what every pre-trained seed started from: a clone of its own, or one for all
    played: dict[tuple[str, str], dict[str, np.ndarray]]  # (digest of a policy, scenario set) -> its figures
    ended: Counted  # is told of every episode that is played

    def episodes(self, scenario_set: str) -> tuple[Episode, ...]:
        """On which policies are measured here: for the training set those that the arms were measured on at the end."""
        count, training = self.trained.final_episodes, self.trained.training
        if scenario_set == training.scenario_set:
            return final_episodes(self.task, scenario_set, training.evaluation, count)
        return self.task.episodes(scenario_set, 0, count, Purpose.EVALUATE)

    def figures(self, policy: StoredPolicy, scenario_set: str) -> dict[str, np.ndarray]:
        """Figure -> (E,) of a policy that sees what the arms see; played once, whoever asks again."""
        if (policy.digest, scenario_set) not in self.played:
            records = run_episodes(self.task, policy.acts(), self.episodes(scenario_set), ended=self.ended)
            self.played[policy.digest, scenario_set] = episode_figures(records.metrics)
        return self.played[policy.digest, scenario_set]


def inputs(run: StageRun, config: Compare, upstream: Mapping[str, str]) -> dict[str, str]:
    task = load_task(config.task)
    return _inputs(find_group(run.client, upstream.get("group", "latest"), task.name), task)


def _inputs(group: Group, task: TaskConfig) -> dict[str, str]:
    """What every training came to, what came before them all, what is judged, and the code that makes the report."""
    judged = repr([to_data(task)[key] for key in JUDGED])
    trained = {f"{arm} seed {m.seed}": m.content for arm, members in group.arms.items() for m in members}
    return {**trained, **lineage.digests_behind(group.finetune), "report": report_code(), "judged": judged}


def run(run: StageRun, config: Compare, upstream: Mapping[str, str]) -> StageOutcome:
    task = load_task(config.task)
    target = config.solved(task)
    group = find_group(run.client, upstream.get("group", "latest"), task.name)
    trained = read_config(run.client, group.finetune, Finetune)
    seen = Task(task, trained.training.environment, trained.training.use_camera)
    run.record_config(config, task, _inputs(group, task))
    run.tag({Tag.GROUP: group.name, **lineage.from_runs({"baseline": group.baseline, "finetune": group.finetune})})
    taints = lineage.inherit_taint(run)
    trainings = [group.finetune, *(member.run for members in group.arms.values() for member in members)]
    datasets = imitated_datasets(run, (training.data.tags.get(lineage_run_tag("dataset")) for training in trainings))
    shared = started_from(group.finetune)
    started = [member.run.data.tags.get(lineage_run_tag("policy"), shared) for member in group.arms[Arm.PRETRAINED]]
    clones = {run_id: find_policy(run.client, run_id, task.name, {}) for run_id in dict.fromkeys(started)}
    first = datasets[0] if lineage_run_tag("dataset") in group.finetune.data.tags else None  # not one of an arm alone
    steps = group.arms[Arm.SCRATCH][0].steps
    if len(steps) < 2:
        raise BadInput(f"group {group.name!r}: its trainings were evaluated once only; nothing can be compared")
    settings = ComparisonSettings(
        target=target,
        patience=config.patience,
        evaluation_interval=int(steps[1] - steps[0]),
        ratio_target=config.ratio_target,
        resamples=config.resamples,
        seed=config.seed,
        final_figure=Metric.SUCCESS_RATE,
        training_set=trained.training.scenario_set,
        minimised=tuple(sorted(task.minimised)),
        undirected=(Metric.LENGTH_MEAN,),
        primary=task.primary_figures,
        smallest_difference=task.smallest_difference,
        evaluation_episodes=trained.training.evaluation.episodes,
    )
    with ProgressBar("compare", None, "episodes") as progress:
        evidence = Evidence(group, trained, seen, first, tuple(clones[run_id] for run_id in started), {}, progress.add)
        sets = (trained.training.scenario_set, *seen.config.holdout_sets)
        played = [{name: evidence.figures(clone, name) for name in sets} for clone in evidence.clones]
        different = len({clone.digest for clone in evidence.clones})
        runs = arm_data(run, evidence)
        comparison = compare_arms(runs, settings, upfront_cost(run.client, group), played, different)
        regressions = find_regressions(run, evidence, runs[Arm.PRETRAINED], settings)
        animations, undrawn = None, None
        if seen.renders:
            try:
                animations = films(run, evidence, runs[Arm.PRETRAINED], config.playback_episodes)
            except BadInput as error:  # how it looks decides nothing
                undrawn = f"  no films in the report (playback_episodes: 0 asks for none): {error}"
        context = report_context(run, evidence, taints, regressions, animations, comparison)
    report = build_report(comparison, context)
    _log(run, comparison, report)
    known = "is not known, since no run met the target,"
    if not comparison.unanswered:
        known = f"{BOUNDS[comparison.ratio_kind]}{comparison.ratio:.3f}"
    end = comparison.decisive.contrasts[Arm.SCRATCH].difference
    ends = [f"  final {comparison.settings.final_figure} {end:+.3f} against scratch"]
    if comparison.ranking:
        times = [
            "no run met the target"
            if one.ratio_kind is None
            else f"{BOUNDS[one.ratio_kind]}{one.ratio:.3f} of the timesteps"
            for one in comparison.ranking
        ]
        ends = [
            f"  {one.arm}: {time}, final {one.difference:+.3f}"
            for one, time in zip(comparison.ranking, times, strict=True)
        ]
    return StageOutcome(
        (
            f"compare: {comparison.badge}: ratio of timesteps to target {known} "
            f"over {len(comparison.pairs)} matched seeds; "
            f"target {config.ratio_target:g} {'met' if comparison.target_met else 'NOT met'}",
            *(f"  {reason}" for reason in comparison.reasons),
            *ends,
            *(f"  TAINTED: {reason}" for reason in taints),
            *([undrawn] if undrawn else []),
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
                evidence.played[policy.digest, trained.training.scenario_set] = member.final
                final |= {name: evidence.figures(policy, name) for name in evidence.task.config.holdout_sets}
            spent = member.run.data.metrics
            data.setdefault(arm, []).append(
                RunData(
                    member.seed, member.steps, member.figures, final, budget, episodes=member.episodes,
                    evaluation_steps=int(spent.get(Metric.EVALUATION_STEPS, 0)),
                    wall_seconds=spent.get(Metric.WALL_SECONDS, np.nan),
                    gradient_steps=spent.get(Metric.GRADIENT_STEPS, np.nan),
                    dataset=member.run.data.tags.get(Tag.LINEAGE_DATASET, ""),
                    best_step=int(spent[Metric.BEST_TIMESTEP]) if Metric.BEST_TIMESTEP in spent else None,
                )
            )  # fmt: skip
    return data


def find_regressions(
    run: StageRun, evidence: Evidence, pretrained: Sequence[RunData], settings: ComparisonSettings
) -> tuple[Regression, ...] | None:
    """What fine-tuning on other scenarios did to the demonstrated ones: clone against fine-tuned policies, there.

    None where nothing was demonstrated.
    """
    if evidence.dataset is None:
        return None
    demonstrated, figure = evidence.dataset.metadata.scenario_set, Metric.SUCCESS_RATE
    if demonstrated == evidence.trained.training.scenario_set:
        return ()
    before = [evidence.figures(clone, demonstrated)[figure] for clone in evidence.clones]
    tuned = [policy_of(run.client, member.run) for member in evidence.group.arms[Arm.PRETRAINED]]
    after = [evidence.figures(policy, demonstrated)[figure] for policy in tuned]
    clones, datasets = len({clone.digest for clone in evidence.clones}), [data.dataset for data in pretrained]
    found = measure_regression(demonstrated, figure, before, after, clones, settings, datasets)
    if found.regressed:
        run.tag({Tag.REGRESSION: f"{found.figure} on {demonstrated}: {found.before:.3f} to {found.after.value:.3f}"})
    return (found,)


def films(run: StageRun, evidence: Evidence, pretrained: Sequence[RunData], count: int) -> tuple[Animation, ...]:
    """The policy from scratch, the clone and the pre-trained policy of the seed of median final success."""
    if not count:
        return ()
    sets = list(pretrained[0].final)
    seed = median_of([float(data.final[sets[0]][Metric.SUCCESS_RATE].mean()) for data in pretrained])
    arms = evidence.group.arms
    policies = {
        Arm.SCRATCH: policy_of(run.client, arms[Arm.SCRATCH][seed].run),
        START: evidence.clones[seed],
        Arm.PRETRAINED: policy_of(run.client, arms[Arm.PRETRAINED][seed].run),
    }
    return comparison_films(
        evidence.task,
        {name: evidence.episodes(name) for name in sets},
        {
            ARM_LABELS[who]: (policy.acts(), {name: evidence.figures(policy, name) for name in sets})
            for who, policy in policies.items()
        },
        f"policies of seed {pretrained[seed].seed}",
        count,
    )


def report_context(
    run: StageRun,
    evidence: Evidence,
    taints: tuple[str, ...],
    regressions: tuple[Regression, ...] | None,
    animations: tuple[Animation, ...] | None,
    comparison: Comparison,
) -> ReportContext:
    """Everything the report shows besides the numbers of the comparison."""
    group, trained, target = evidence.group, evidence.trained, comparison.settings.target
    figures = [f.figure for f in comparison.finals[comparison.settings.training_set]]
    members = [(arm, member) for arm, of_arm in group.arms.items() for member in of_arm]
    # settings of training cannot differ, or the group would have been refused
    scratch, pretrained = group.baseline.data.params, group.finetune.data.params
    keys = sorted(key for key in scratch.keys() | pretrained.keys() if scratch.get(key) != pretrained.get(key))
    first_clones = policy = started_from(group.finetune)
    ids = dict.fromkeys(m.run.data.tags.get(Tag.LINEAGE_DATASET, "") for m in group.arms[Arm.PRETRAINED])
    if len(ids) > 1:  # each was cloned by a run of its own
        made_by = (m.run.data.tags[lineage_run_tag("pretrain")] for m in group.arms[Arm.PRETRAINED])
        policy = ",".join(dict.fromkeys(made_by))
    made = f"{comparison.clones} different policies, one a seed," if comparison.clones > 1 else "one policy"
    made = f"{made} of run {policy.replace(',', ', ')}"
    several = f", {comparison.clones} clones, one a seed, of which the first is named"
    several = several if comparison.clones > 1 and len(ids) < 2 else ""
    weights = SettingDifference("initial weights", "fresh, from the seed", made)
    fixed: list[float] = []  # by which rewards are divided that critics of clones know
    distinct = {clone.run_id: clone for clone in evidence.clones} if trained.training.normalize_reward else {}
    for clone in distinct.values():
        text = read_text_artifact(run.client, str(clone.run_id), Artifact.CERTIFICATE)
        start = replace(clone, certificate=None if text is None else Transfer.from_json(text)).as_start()
        left = start.learnt_nothing is not None and trained.warm_start.clone_weights == ADAPTIVE
        if start.return_scale is not None and not left:
            fixed.append(start.return_scale)
    fixed.sort()
    rewards = " to ".join(dict.fromkeys(f"{scale:.4g}" for scale in fixed[:: max(1, len(fixed) - 1)]))
    chain = lineage.trace(run.client, run.run_id, up=True)
    parents: dict[str, tuple[str, ...]] = {}
    for source, below in chain.edges:
        parents[below] = (*parents.get(below, ()), source)
    resumed = {member.run.data.tags.get(Tag.RESUME) for _, member in members}
    record = environment_record()
    trained_in = read_text_artifact(run.client, group.finetune.info.run_id, Artifact.ENVIRONMENT)
    machine = record if trained_in is None else parse_json(trained_in, Artifact.ENVIRONMENT)
    again, download = f"{group.name}-again", "mlflow artifacts download --artifact-path config.yaml"
    return ReportContext(
        task=evidence.task.config.name,
        group=group.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        taints=taints,
        regressions=regressions,
        animations=animations,
        differences=(
            weights,
            *(  # normalize_reward, which both have, means another thing to critics that know returns
                SettingDifference(
                    "rewards are divided by",
                    "the running spread of their returns, and cut off at 10",
                    f"{rewards}, the scale of returns that the critic knows which it starts with; nothing is cut off",
                ),
            )
            * bool(fixed),
            *(SettingDifference(key, scratch.get(key, "–"), pretrained.get(key, "–")) for key in keys),
            *(  # written down in both arms, done in one
                SettingDifference(f"warm_start.{key}", "–", value)
                for key, value in flatten(to_data(trained.warm_start)).items()
            ),
        ),
        arms=arm_settings(trained),
        decisions=_decisions(run, group, Arm.PRETRAINED),
        further_decisions={arm: decided for arm in trained.arms if (decided := _decisions(run, group, arm))} or None,
        shared_settings=flatten(to_data(trained)["training"]),
        references=_references(run, evidence),
        shift=_shift(run, group),
        holdout_shifts=_holdout_shifts(run, evidence),
        experts=_experts(run, group),
        others=_others(run, group),
        target_origin=target_origin(run, evidence, target, chain),
        scenario_sets={
            name: ", ".join(f"{one} {share:g}" for one, share in evidence.task.config.scenario_sets[name].items())
            for name in comparison.finals
        },
        glossary=glossary(evidence.task.config, figures),
        demonstrated=evidence.dataset is not None,
        dataset=_demonstrations(run, evidence, tuple(ids), first_clones),
        lineage=tuple(
            LineageNode(
                node.run_id, node.stage, node.title,
                f"run {node.run_id}{several if node.stage == 'pretrain' else ''}",
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
            f"mlflow run . -e baseline --env-manager local -P config=again/trainings/config.yaml -P policy={policy} "
            f"-P group={again} -P reuse=false",
            f"mlflow run . -e finetune --env-manager local -P config=again/trainings/config.yaml -P policy={policy} "
            f"-P group={again} -P reuse=false",
            f"mlflow run . -e compare --env-manager local -P config=again/compare/config.yaml -P group={again}",
        ),
        versions=record["packages"],
        commit=record["git"]["commit"],
        dirty=record["git"]["dirty"],
        machine=", ".join(machine[key] for key in ("platform", "processor") if key in machine),
        # the weakest of what the trainings say of themselves
        resume=next((label for label in (Resume.NOT_EXACT, Resume.EXACT) if label in resumed), None),
    )  # fmt: skip


def arm_settings(trained: Finetune) -> dict[str, dict[str, str]] | None:
    """Setting -> arm -> its value: all in which the arms that `finetune` trained are not alike. None for one alone."""
    if not trained.arms:
        return None
    settings = {Arm.PRETRAINED: FurtherArm(warm_start=trained.warm_start), **trained.arms}
    said = dict[str, dict[str, str]]()
    for arm, given in settings.items():
        sac = given.algorithm == "sac"
        weights = given.weights or ("fresh" if sac else "clone")
        every = to_data(replace(given, weights=weights, sac=(given.sac or SACTraining()) if sac else None))
        said[arm] = flatten({key: value for key, value in every.items() if value is not None})
    keys = dict.fromkeys(key for of_arm in said.values() for key in of_arm)
    values = {key: {arm: of_arm.get(key, "–") for arm, of_arm in said.items()} for key in keys}
    return {key: of_arms for key, of_arms in values.items() if len(set(of_arms.values())) > 1}


def _decisions(run: StageRun, group: Group, arm: str) -> dict[int, list[Decision]]:
    """What the adaptive warm start of a seed of this arm decided; nothing of a seed that had fixed values."""
    found = {}
    for member in group.arms.get(arm, ()):
        text = read_text_artifact(run.client, member.run.info.run_id, Artifact.WARM_START)
        if text is not None:
            found[member.seed] = [Decision(**decision) for decision in parse_json(text, Artifact.WARM_START)]
    return found


def _demonstrations(run: StageRun, evidence: Evidence, datasets: Sequence[str], clones: str) -> dict[str, str] | None:
    """Facts about what was cloned, and how; `clones`: the run that made them. None without demonstrations."""
    if evidence.dataset is None:
        return None
    metadata, success = evidence.dataset.metadata, evidence.dataset.trajectories.metrics.get(Metric.SUCCESS)
    cloned = get_run(run.client, clones, "clones").data
    method, epochs = (cloned.params.get(f"{CONFIG_PARAM_PREFIX}{key}") for key in ("algorithm", "cloning.epochs"))
    return {
        **({"datasets": ", ".join(datasets), "facts below": "of the first"} if len(datasets) > 1 else {}),
        "dataset": metadata.dataset_id,
        "episodes": f"{metadata.episodes:,}",
        "environment steps": f"{metadata.steps:,}",
        "scenario set": metadata.scenario_set,
        "demonstrator": metadata.origin,
        "execution noise": f"{metadata.noise_std:g} of the half action range; labels are clean",
        "success": "not known" if success is None else f"{success.mean():.3f}",
        "content digest": metadata.content_digest,
        "imitation": cloned.tags.get(Tag.IMITATION, "not judged"),
        "imitation method": f"{method or 'not known'}{f', {epochs} epochs' if method == 'bc' else ''}",
    }


def _references(run: StageRun, evidence: Evidence) -> tuple[ReferencePolicy, ...]:
    """Who demonstrated, on the very episodes that the arms are measured on at their end."""
    task, tags = evidence.task, evidence.group.finetune.data.tags
    # demonstrators see numbers also where clones see pictures
    without_camera = Task(task.config, task.environment_kwargs)
    actors: dict[str, tuple[Task, Actor]] = {}
    metadata = None if evidence.dataset is None else evidence.dataset.metadata
    if metadata is not None and metadata.demonstrator["kind"] == "scripted":
        script = demonstrator_of(run.client, metadata, without_camera)
        if script is not None:
            actors["script that demonstrated"] = without_camera, script.actor
    if Tag.LINEAGE_EXPERT in tags:
        expert = find_policy(run.client, tags[Tag.LINEAGE_EXPERT], task.config.name, {})
        actors["expert"] = as_policy_sees(without_camera, expert.folder), expert.acts()
    sets = dict.fromkeys((evidence.trained.training.scenario_set, *task.config.holdout_sets))
    episodes = {name: evidence.episodes(name) for name in sets}
    return tuple(
        ReferencePolicy(
            name, scenario_set, summarise(run_episodes(seen, actor, chosen, ended=evidence.ended)), len(chosen)
        )
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


def _holdout_shifts(run: StageRun, evidence: Evidence) -> dict[str, Shift] | None:
    """Are the hold-out scenarios like the demonstrations; None when nobody can play them as those were."""
    dataset = evidence.dataset
    if dataset is None:
        return None
    task = Task(evidence.task.config, evidence.task.environment_kwargs)  # demonstrators see numbers
    demonstrator = demonstrator_of(run.client, dataset.metadata, task)
    if demonstrator is None:
        return None
    found = {
        name: scenario_shift(task, dataset.trajectories, dataset.metadata, demonstrator.actor, name, evidence.ended)
        for name in task.config.holdout_sets
    }
    return {name: shift for name, shift in found.items() if shift is not None}


def _others(run: StageRun, group: Group) -> tuple[OtherComparison, ...]:
    """What this store has of the same task with another expert or other demonstrations, the newest of each group."""
    found: dict[str, OtherComparison] = {}
    for other in search(run.client, {Tag.STAGE: "compare", Tag.TASK: tag_of(group.finetune, Tag.TASK)}):
        tags, metrics = other.data.tags, other.data.metrics
        expert, dataset = (tags.get(tag, "none") for tag in (Tag.LINEAGE_EXPERT, Tag.LINEAGE_DATASET))
        own = [group.finetune.data.tags.get(tag, "none") for tag in (Tag.LINEAGE_EXPERT, Tag.LINEAGE_DATASET)]
        name = tags.get(Tag.GROUP, group.name)
        if [expert, dataset] == own or name in (*found, group.name) or Tag.COMPARISON not in tags or Tag.TAINT in tags:
            continue
        ends = [metrics[name] for end in ("", "_ci_low", "_ci_high") if (name := f"{Metric.RATIO}{end}") in metrics]
        ratio = Estimate(*ends) if len(ends) == 3 else None
        found[name] = OtherComparison(name, expert, dataset, tags[Tag.COMPARISON], ratio, run_address(other))
    return tuple(found.values())


def _experts(run: StageRun, group: Group) -> tuple[RunCurve, ...] | None:
    """The evaluations of the expert's seeds while they were trained; None where this store did not train it."""
    made_by = group.finetune.data.tags.get(lineage_run_tag("expert"))
    if made_by is None or tag_of(expert := get_run(run.client, made_by, "expert"), Tag.STAGE) != "train_expert":
        return None
    curves = []
    for training in (one for one in trainings(run.client, expert) if one.info.status == "FINISHED"):
        points = read_evaluations(run.client, training)["evaluations"]
        steps = tuple(int(point["timestep"]) for point in points)
        shared = set[str].intersection(*(set(point["figures"]) for point in points))
        figures = {figure: tuple(float(point["figures"][figure]) for point in points) for figure in sorted(shared)}
        curves.append(RunCurve(seed_of(training), steps, figures))
    return tuple(sorted(curves, key=lambda curve: curve.seed)) or None


def target_origin(run: StageRun, evidence: Evidence, target: Mapping[str, Bound], chain: lineage.Lineage) -> str:
    """Where the target stands, why, and which run behind the comparison was the first to record it."""
    limits = ", ".join(f"{figure.replace('_', ' ')} {bound}" for figure, bound in target.items())
    if evidence.task.config.thresholds != target:
        return f"{limits}, given to this comparison alone (setting target), not by the task file: after both arms."
    why = f" ({evidence.task.config.thresholds_why})" if evidence.task.config.thresholds_why else ""
    where = f"{limits}, the thresholds of the task file of '{evidence.task.config.name}'{why}"
    cloned = get_run(run.client, started_from(evidence.group.finetune), "clones").info.start_time
    for node in chain.nodes:  # oldest first
        recorded = read_text_artifact(run.client, node.run_id, Artifact.TASK) if node.run_id != run.run_id else None
        then = {} if recorded is None else parse_yaml(recorded, Artifact.TASK).get("thresholds", {})
        if {figure: validate(Bound, bound, Artifact.TASK) for figure, bound in then.items()} == target:
            began = get_run(run.client, node.run_id, "lineage").info.start_time
            at = datetime.fromtimestamp(began / 1_000, UTC).isoformat(" ", "minutes").removesuffix("+00:00")
            order = "before" if began < cloned else "not before"
            first = f"first recorded in {Artifact.TASK} of run {node.run_id} ({node.stage}), {at} UTC"
            return f"{where}; {first}, {order} the clones were made."
    return f"{where}; no run before this comparison recorded it: whether it was chosen afterwards is not known."


def _log(run: StageRun, comparison: Comparison, report: Mapping[str, bytes]) -> None:
    folder = run.folder / Artifact.REPORT
    for name, content in report.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run.file(folder, Artifact.REPORT)
    run.tag({Tag.REPORT_DIGEST: report_digest(folder), Tag.COMPARISON: comparison.badge})
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
    for scenario_set, of_set in comparison.finals.items():  # of the best checkpoints, pre-trained minus the others
        for f in of_set:
            for reference, contrast in f.contrasts.items():
                name = "difference" if reference == Arm.SCRATCH else "over_clone"
                metrics |= with_intervals({f"final/{scenario_set}/{f.figure}_{name}": contrast.difference})
            if f.figure == comparison.settings.final_figure:
                both = {arm: f.means[arm] for arm in (Arm.SCRATCH, Arm.PRETRAINED)}
                metrics |= with_intervals({f"final/{scenario_set}/{f.figure}_{arm}": m for arm, m in both.items()})
    run.metrics({name: value for name, value in metrics.items() if np.isfinite(value)})
    for pair in comparison.pairs:
        arms = {"scratch": pair.baseline.steps, "pretrained": pair.pretrained.steps}
        run.metrics({f"{Metric.TIMESTEPS_TO_TARGET}/{arm}": steps for arm, steps in arms.items()}, step=pair.seed)
