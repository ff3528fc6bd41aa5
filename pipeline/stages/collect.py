"""`collect`: record demonstrations from the approved expert or a scripted demonstrator, and validate them at once."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from pipeline import demonstrators
from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Collect, Filter
from pipeline.demonstrators import Demonstrator
from pipeline.envs.episodes import Episode
from pipeline.evaluation import record_episodes, records_of, summarise, with_intervals
from pipeline.names import EVAL_PREFIX, Alias, Artifact, Metric, VersionTag, lineage_run_tag
from pipeline.report.tables import statistics_table
from pipeline.spaces import space_to_json
from pipeline.stages import StageOutcome
from pipeline.tasks import Purpose, Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import dataset_tags, log_dataset_input
from pipeline.tracking.models import fetch_version, find_version
from pipeline.tracking.provenance import git_state
from pipeline.tracking.registry import approvals, require_approved
from pipeline.tracking.runs import StageRun, get_run
from pipeline.trajectories import DatasetMetadata, Trajectories, concatenate, content_digest, save_dataset
from pipeline.validation import ValidationReport, validate
from pipeline.validation.replay import TaskReplay
from pipeline.validation.rules import Context

UPSTREAM = ("expert",)
MAX_ROUNDS = 5  # of recording again what a filter dropped


def run(run: StageRun, config: Collect, upstream: Mapping[str, str]) -> StageOutcome:
    started = datetime.now(UTC)
    task = Task(load_task(config.task), config.environment)
    task.refuse_holdouts(config.scenario_set, "recording")
    demonstrator = _demonstrator(run, config, task, upstream.get("expert", "latest"))
    run.record_config(config, task.config, {"demonstrator": demonstrator.provenance["digest"]})
    trajectories, steps = record(task, config, demonstrator)
    metadata = _metadata(run, config, task, demonstrator, trajectories, started)
    report = _store(run, metadata, trajectories, _context(run, config, task, demonstrator, metadata))
    records = records_of(trajectories, task.action_space)
    run.text(statistics_table(records), "statistics.md")
    run.metrics({f"{EVAL_PREFIX}{name}": value for name, value in with_intervals(summarise(records)).items()})
    sizes = {"dataset/episodes": len(trajectories), "dataset/steps": trajectories.steps}
    run.metrics({Metric.ENVIRONMENT_STEPS: steps, **sizes})
    figures = trajectories.metrics
    return StageOutcome(
        (
            f"collect: dataset {metadata.dataset_id}: {report.summary()}",
            f"  demonstrations of {demonstrator.provenance['name']} {demonstrator.provenance['version']}: success "
            f"{figures[Metric.SUCCESS].mean():.3f}, mean return {figures[Metric.RETURN].mean():.2f}, {steps:,} steps",
        ),
        verdict=report.passed,
        outputs={"dataset": metadata.dataset_id},
    )


def _store(run: StageRun, metadata: DatasetMetadata, trajectories: Trajectories, context: Context) -> ValidationReport:
    """Write, validate what was written, and only then let the dataset appear in the store, whole, with its status."""
    folder = run.folder / Artifact.DATASET
    save_dataset(folder, trajectories, metadata)
    report = validate(folder, context)
    run.file(folder, Artifact.DATASET)
    run.text(report.to_json(), Artifact.VALIDATION_JSON)
    run.text(report.to_markdown(), Artifact.VALIDATION_MD)
    log_dataset_input(run, metadata, run.run_id, "recorded")
    run.tag(dataset_tags(metadata, report.status))
    return report


def record(task: Task, config: Collect, demonstrator: Demonstrator) -> tuple[Trajectories, int]:
    """The kept episodes, in the asked-for shares, and the environment steps that were played for them.

    What the filter drops is recorded again with fresh seeds, scenario by scenario, at most `MAX_ROUNDS` times; a
    demonstrator that fails more often leaves a dataset that validation finds short.
    """
    missing = Counter(e.scenario for e in _episodes(task, config, 1))
    waiting: dict[str, list[Episode]] = {scenario: [] for scenario in missing}
    for episode in _episodes(task, config, MAX_ROUNDS if _filters(config.filter) else 1):
        waiting[episode.scenario].append(episode)
    kept: list[Trajectories] = []
    steps = 0
    while batch := _take(waiting, missing):
        part = record_episodes(task, demonstrator.act, batch, config.noise.std, config.seeds[0], config.n_envs)
        good = np.flatnonzero(passes(config.filter, part))
        kept.append(part.select(good))
        steps += part.steps
        missing -= Counter(str(part.scenarios[index]) for index in good)
    return concatenate(kept), steps


def passes(chosen: Filter, trajectories: Trajectories) -> np.ndarray:
    """(N,) bool: the episodes that a filter keeps."""
    keep = np.ones(len(trajectories), bool)
    if chosen.min_return is not None:
        keep &= trajectories.metrics[Metric.RETURN] >= chosen.min_return
    if chosen.only_success:
        keep &= trajectories.metrics[Metric.SUCCESS] > 0.5
    return keep


def _filters(chosen: Filter) -> bool:
    return chosen.min_return is not None or chosen.only_success


def _episodes(task: Task, config: Collect, rounds: int) -> tuple[Episode, ...]:
    return task.episodes(config.scenario_set, config.seeds, config.episodes * rounds, Purpose.RECORD)


def _take(waiting: dict[str, list[Episode]], missing: Counter[str]) -> list[Episode]:
    """As many waiting episodes of every scenario as are missing; taken from `waiting`, scenarios interleaved."""
    batch: list[Episode] = []
    for scenario, count in missing.items():
        batch.extend(waiting[scenario][:count])
        waiting[scenario] = waiting[scenario][count:]
    return sorted(batch, key=lambda episode: episode.seed)


def _demonstrator(run: StageRun, config: Collect, task: Task, reference: str) -> Demonstrator:
    """The approved expert or the scripted demonstrator; anything else is refused before the first step."""
    if config.scripted is not None:
        return demonstrators.scripted(config.scripted.demonstrator, config.scripted.kwargs)
    version = find_version(run.client, reference, task.config.name, Alias.APPROVED)
    require_approved(version, "collect")
    expert = fetch_version(version)
    maker = {} if expert.run_id is None else get_run(run.client, expert.run_id, "expert").data.tags
    run.tag(
        {**lineage.from_policy(expert, "expert", maker), lineage_run_tag("gate"): version.tags[VersionTag.GATE_RUN_ID]}
    )
    return demonstrators.from_policy(str(expert.folder), version.name, str(version.version), expert.digest)


def _metadata(
    run: StageRun,
    config: Collect,
    task: Task,
    demonstrator: Demonstrator,
    trajectories: Trajectories,
    started: datetime,
) -> DatasetMetadata:
    commit, dirty = git_state()
    coverage = Counter(str(scenario) for scenario in trajectories.scenarios)
    return DatasetMetadata(
        dataset_id=f"{task.config.name}-{run.run_id[:8]}",
        created_at=started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        task=task.config.name,
        scenario_set=config.scenario_set,
        scenario_coverage=dict(sorted(coverage.items())),
        requested_shares=task.shares(config.scenario_set),
        demonstrator=demonstrator.provenance,
        seeds=config.seeds,
        noise_std=config.noise.std,
        filter=to_data(config.filter),
        observation_space=space_to_json(task.observation_space),
        action_space=space_to_json(task.action_space),
        environment={
            "id": task.config.environment.id,
            "kwargs": task.environment_kwargs,
            "scenarios": {scenario: task.config.scenarios[scenario] for scenario in coverage},
        },
        holdout_scenarios=tuple(sorted(task.config.holdout_scenarios())),
        episodes=len(trajectories),
        steps=trajectories.steps,
        content_digest=content_digest(trajectories),
        run_id=run.run_id,
        git_commit=commit,
        git_dirty=dirty,
        horizon=task.config.horizon,
    )


def _context(
    run: StageRun, config: Collect, task: Task, demonstrator: Demonstrator, metadata: DatasetMetadata
) -> Context:
    return Context(
        task=task.config,
        observation_space=task.observation_space,
        action_space=task.action_space,
        min_episodes=config.min_episodes,
        approvals=approvals(run.client, task.config.name),
        expected_digest=metadata.content_digest,
        replay=TaskReplay(task),
        replay_episodes=config.replay_episodes,
        act=demonstrator.act if config.scripted is None else None,
    )
