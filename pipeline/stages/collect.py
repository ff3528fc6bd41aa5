"""`collect`: take in demonstrations and validate them at once.

They are recorded from the approved expert or a scripted demonstrator, read from a Minari dataset, or are the repaired
copy of a dataset that was quarantined.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Collect, Minari, Repaired
from pipeline.data import (
    UNAPPROVED,
    UNKNOWN_SEED,
    DatasetMetadata,
    Trajectories,
    content_digest,
    load_dataset,
    metadata_digest,
    read_archive,
    read_metadata,
    write_dataset,
)
from pipeline.data.spaces import space_to_json
from pipeline.errors import BadInput, shortened
from pipeline.names import (
    EVAL_PREFIX,
    LINEAGE_PREFIX,
    METADATA_FILE,
    TRAJECTORIES_FILE,
    Alias,
    Artifact,
    Metric,
    Quality,
    Tag,
    VersionTag,
    lineage_run_tag,
)
from pipeline.play.demonstrators import Demonstrator, Script, expert_demonstrator, scripted
from pipeline.play.evaluation import record, records_of, summarise, with_intervals, with_snqi
from pipeline.policies import ActFunction, act_function, load_policy
from pipeline.report.pages import rollout_table, statistics_table
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import (
    dataset_tags,
    download_dataset,
    find_dataset_run,
    find_refusals,
    log_dataset_input,
)
from pipeline.tracking.host import git_state
from pipeline.tracking.models import StoredPolicy, fetch_version, find_expert, find_version
from pipeline.tracking.references import Reference
from pipeline.tracking.registry import approvals, moment_of_use, require_approved
from pipeline.tracking.runs import StageRun, get_run
from pipeline.validation import Context, Refusal, TaskReplay, ValidationReport, validate
from pipeline.validation.findings import PASSED

UPSTREAM = ("expert",)
# what a repair must leave as it was: it mends data, it does not give it another origin
ORIGIN: Final = (
    "task", "created_at", "scenario_set", "demonstrator", "seeds", "noise_std", "observation_space", "action_space",
    "environment", "holdout_scenarios", "horizon", "filter", "requested_shares", "requested_episodes",
)  # fmt: skip


@dataclass(frozen=True)
class Demonstrations:
    """What a source gave, before anybody judged it."""

    trajectories: Trajectories
    metadata: DatasetMetadata
    steps: int  # environment steps that were played for them, here and now
    act: ActFunction | None  # the policy that demonstrated, where it can be asked again
    content_digest: str  # of the arrays, by whoever made them
    refusals: tuple[Refusal, ...] = ()  # of the dataset that it repairs


def inputs(run: StageRun, config: Collect, upstream: Mapping[str, str]) -> dict[str, str]:
    task = Task(load_task(config.task), config.environment)
    if config.minari is not None:
        return {"minari": _read_minari(config, task, config.minari)[1].content_digest}
    if config.repaired is not None:
        return {"repaired": load_dataset(config.repaired.folder)[1].content_digest}
    if config.scripted is not None:
        chosen = scripted(config.scripted.demonstrator, config.scripted.kwargs)
        return {"demonstrator": chosen.provenance["digest"]}
    return {"demonstrator": _approved(run, task, upstream.get("expert", "latest")).digest}


def run(run: StageRun, config: Collect, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.environment)
    task.refuse_holdouts(config.scenario_set, "recording")
    given = demonstrations(run, config, task, upstream.get("expert", "latest"))
    trajectories, metadata = given.trajectories, given.metadata
    with closing(TaskReplay(task)) as replay:
        report = _store(run, metadata, trajectories, _context(run, config, task, given, replay))
    sizes = {"dataset/episodes": len(trajectories), "dataset/steps": trajectories.steps}
    run.metrics({Metric.ENVIRONMENT_STEPS: given.steps, **sizes})
    lines = [f"collect: dataset {metadata.dataset_id}: {report.summary()}", f"  demonstrations: {metadata.origin}"]
    # data of another environment, or NaN, can be neither counted nor averaged
    if {"actions_in_space", "metrics_finite"} <= {o.rule for o in report.rules if o.state == PASSED}:
        records, figures = records_of(trajectories, task.action_space), trajectories.metrics
        run.text(statistics_table(records), "statistics.md")
        run.metrics({f"{EVAL_PREFIX}{name}": value for name, value in with_intervals(summarise(records)).items()})
        success, mean_return = figures[Metric.SUCCESS].mean(), figures[Metric.RETURN].mean()
        lines.append(f"  success {success:.3f}, mean return {mean_return:.2f}, {given.steps:,} steps")
        lines += rollout_table(records).splitlines()
    return StageOutcome(
        tuple(lines),
        verdict=report.passed,
        outputs={"dataset": metadata.dataset_id},
    )


def demonstrations(run: StageRun, config: Collect, task: Task, expert: str) -> Demonstrations:
    """From the source that the config names. Its identity and lineage go on record before any work starts."""
    if config.minari is not None:
        return _imported(run, config, task, config.minari)
    if config.repaired is not None:
        return _repaired(run, config, task, config.repaired)
    demonstrator, started = _demonstrator(run, config, task, expert)
    run.record_config(config, task.config, {"demonstrator": demonstrator.provenance["digest"]})
    trajectories, steps = record(task, config, demonstrator.actor)
    metadata = _metadata(run, config, task, demonstrator, trajectories, started)
    actor = demonstrator.actor
    act = None if isinstance(actor, Script) else actor
    return Demonstrations(trajectories, metadata, steps, act, metadata.content_digest)


def _store(run: StageRun, metadata: DatasetMetadata, trajectories: Trajectories, context: Context) -> ValidationReport:
    """Write, validate what was written, and only then let the dataset appear in the store, whole, with its status."""
    folder = run.folder / Artifact.DATASET
    write_dataset(folder, trajectories.to_arrays(), metadata.to_data())  # validation digests what was written
    report = validate(folder, context)
    run.file(folder, Artifact.DATASET)
    run.text(report.to_json(), Artifact.VALIDATION_JSON)
    run.text(report.to_markdown(), Artifact.VALIDATION_MD)
    log_dataset_input(run, metadata, run.run_id, "recorded")
    run.tag(dataset_tags(metadata, report.status))
    return report


def _demonstrator(run: StageRun, config: Collect, task: Task, reference: str) -> tuple[Demonstrator, str]:
    """The approved expert or the scripted demonstrator, and the moment from which it is used.

    Anything else is refused before the first step.
    """
    if config.scripted is not None:
        if reference != "latest":
            raise BadInput(f"expert {reference!r} and scripted.demonstrator exclude each other; give one of them")
        return scripted(config.scripted.demonstrator, config.scripted.kwargs), _utc(datetime.now(UTC))
    expert = _approved(run, task, reference)
    version = expert.version
    assert version is not None
    maker = {} if expert.run_id is None else get_run(run.client, expert.run_id, "expert").data.tags
    gate = get_run(run.client, version.tags[VersionTag.GATE_RUN_ID], f"{VersionTag.GATE_RUN_ID} of {expert.reference}")
    run.tag({**lineage.from_policy(expert, "expert", maker), lineage_run_tag("gate"): gate.info.run_id})
    demonstrator = expert_demonstrator(task, expert.folder, version.name, str(version.version), expert.digest)
    return demonstrator, moment_of_use(run.client, version, "collect")


def _approved(run: StageRun, task: Task, reference: str) -> StoredPolicy:
    version = find_version(run.client, reference, task.config.name, Alias.APPROVED)
    require_approved(version, "collect")
    return fetch_version(version)


def _metadata(
    run: StageRun,
    config: Collect,
    task: Task,
    demonstrator: Demonstrator,
    trajectories: Trajectories,
    started: str,
) -> DatasetMetadata:
    commit, dirty = git_state()
    coverage = _coverage(trajectories)
    return DatasetMetadata(
        dataset_id=f"{task.config.name}-{run.run_id[:8]}",
        created_at=started,
        task=task.config.name,
        scenario_set=config.scenario_set,
        scenario_coverage=coverage,
        requested_shares=task.shares(config.scenario_set),
        demonstrator=demonstrator.provenance,
        seeds=config.seeds,
        noise_std=config.noise.std,
        filter=to_data(config.filter),
        observation_space=space_to_json(task.observation_space),
        action_space=space_to_json(task.action_space),
        environment=_environment(task, set(coverage)),
        holdout_scenarios=tuple(sorted(task.config.holdout_scenarios())),
        episodes=len(trajectories),
        steps=trajectories.steps,
        content_digest=content_digest(trajectories),
        run_id=run.run_id,
        git_commit=commit,
        git_dirty=dirty,
        horizon=task.config.horizon,
        requested_episodes=config.episodes,
    )


def _imported(run: StageRun, config: Collect, task: Task, source: Minari) -> Demonstrations:
    """A Minari dataset as one of ours. Whatever its file says of its demonstrator, to us it is `imported`."""
    trajectories, described = _read_minari(config, task, source)
    if described.task != task.config.name:
        raise BadInput(
            f"minari.path {source.path!r} is of task {shortened(described.task)}, this stage works on "
            f"{task.config.name!r}; say which scenario it belongs to: minari.scenario"
        )
    run.record_config(config, task.config, {"minari": described.content_digest})
    run.tag(_exported_from(run, described))
    metadata = _taken_in(
        run,
        described,
        trajectories,
        created_at=_utc(datetime.now(UTC)),
        demonstrator={**described.demonstrator, "kind": "imported", "approval": UNAPPROVED},
    )
    return Demonstrations(trajectories, metadata, 0, _expert_to_ask(run, metadata), described.content_digest)


def _expert_to_ask(run: StageRun, metadata: DatasetMetadata) -> ActFunction | None:
    expert = find_expert(run.client, metadata.demonstrator, metadata.task)
    return None if expert is None else act_function(load_policy(expert.folder))


def _read_minari(config: Collect, task: Task, source: Minari) -> tuple[Trajectories, DatasetMetadata]:
    from pipeline.data.formats.minari import ImportTarget, import_minari  # late: Minari and HDF5 take a second

    target = None if source.scenario is None else ImportTarget(task, source.scenario, config.scenario_set)
    trajectories, metadata = import_minari(source.path, target)
    if target is None:
        return trajectories, metadata
    trajectories = replace(trajectories, metrics=with_snqi(task, trajectories.metrics))
    return trajectories, replace(metadata, content_digest=content_digest(trajectories))


def _exported_from(run: StageRun, described: DatasetMetadata) -> dict[str, str]:
    """Lineage of what this very store exported before: a round trip through a file does not wash a dataset clean."""
    if described.run_id is None or not Reference.parse(described.run_id).run_id:
        return {}
    try:
        origin = get_run(run.client, described.run_id, "exported from")
    except BadInput:
        return {}  # it was recorded in another store
    tags = origin.data.tags
    if not {Tag.DATASET_ID, Tag.DATASET_DIGEST} <= set(tags):
        return {}
    against = tags.get(Tag.TAINT) or (tags.get(Tag.DATASET_QUALITY) == Quality.QUARANTINED and "it is quarantined")
    if against:
        raise BadInput(f"minari.path: it was exported from dataset {tags[Tag.DATASET_ID]}: {against}; record a new one")
    return lineage.from_dataset(origin)


def _repaired(run: StageRun, config: Collect, task: Task, source: Repaired) -> Demonstrations:
    """A repaired copy of a quarantined dataset, of the same origin; it inherits where the old one came from."""
    old = find_dataset_run(run.client, source.dataset, task.config.name)
    name = f"repaired.dataset {old.data.tags[Tag.DATASET_ID]}"
    if Tag.TAINT in old.data.tags:
        raise BadInput(f"{name} is tainted: {old.data.tags[Tag.TAINT]}; no repair of its data mends that")
    quality = old.data.tags.get(Tag.DATASET_QUALITY)
    if quality != Quality.QUARANTINED:
        raise BadInput(f"{name} is {quality!r}; only a quarantined dataset is repaired")
    original = download_dataset(old)
    said = read_metadata(original / METADATA_FILE)
    trajectories, described = load_dataset(source.folder)
    data = described.to_data()
    for key in ORIGIN:
        if data[key] != said.get(key):
            raise BadInput(
                f"repaired.folder {source.folder!r}: {key} = {shortened(data[key])}, the dataset it repairs has "
                f"{shortened(said.get(key))}; a repair keeps its origin"
            )
    run.record_config(config, task.config, {"repaired": described.content_digest})
    inherited = {key: value for key, value in old.data.tags.items() if key.startswith(LINEAGE_PREFIX)}
    run.tag({**inherited, lineage_run_tag("repaired"): old.info.run_id})
    metadata = _taken_in(run, described, trajectories, left_out=_left_out(original, described, trajectories))
    steps = int(old.data.metrics.get(Metric.ENVIRONMENT_STEPS, 0))
    # a copy is another dataset: how many episodes are enough for it is asked anew
    refusals = tuple(replace(r, min_episodes=0) for r in find_refusals(run.client, old))
    return Demonstrations(
        trajectories, metadata, steps, _expert_to_ask(run, described), described.content_digest, refusals
    )


def _left_out(original: Path, described: DatasetMetadata, trajectories: Trajectories) -> tuple[int, ...]:
    """Seeds of the episodes that a repair leaves out: those it names, and those that the old arrays still show."""
    gone = set(described.left_out)
    with contextlib.suppress(BadInput):  # the old arrays may be what was broken
        gone |= {int(seed) for seed in read_archive(original / TRAJECTORIES_FILE).get("seeds", np.zeros(0)).ravel()}
    return tuple(sorted(gone - {*trajectories.seeds.tolist(), UNKNOWN_SEED}))


def _taken_in(run: StageRun, described: DatasetMetadata, trajectories: Trajectories, **changes: Any) -> DatasetMetadata:
    """The metadata of data from outside under a new id of ours; what can be counted is counted."""
    commit, dirty = git_state()
    return replace(
        described,
        dataset_id=f"{described.task}-{run.run_id[:8]}",
        scenario_coverage=_coverage(trajectories),
        episodes=len(trajectories),
        steps=trajectories.steps,
        content_digest=content_digest(trajectories),
        run_id=run.run_id,
        git_commit=commit,
        git_dirty=dirty,
        **changes,
    )


def _coverage(trajectories: Trajectories) -> dict[str, int]:
    return dict(sorted(Counter(str(scenario) for scenario in trajectories.scenarios).items()))


def _environment(task: Task, scenarios: set[str]) -> dict[str, Any]:
    return {
        "id": task.config.environment.id,
        "kwargs": task.environment_kwargs,
        "wrappers": task.wrappers,
        "scenarios": {scenario: task.config.scenarios[scenario] for scenario in sorted(scenarios)},
    }


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _context(run: StageRun, config: Collect, task: Task, given: Demonstrations, replay: TaskReplay) -> Context:
    return Context(
        task=task.config,
        environment=config.environment,
        observation_space=task.observation_space,
        action_space=task.action_space,
        min_episodes=config.min_episodes,
        approvals=approvals(run.client, task.config.name, given.metadata.demonstrator),
        expected_digest=given.content_digest,
        expected_metadata_digest=metadata_digest(given.metadata.to_data()),
        replay=replay,
        replay_episodes=config.replay_episodes,
        act=given.act,
        refusals=given.refusals,
    )
