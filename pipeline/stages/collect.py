"""`collect`: take in demonstrations and validate them at once.

They are recorded from the approved expert or a scripted demonstrator, read from files of others, or are the repaired
copy of a dataset that was quarantined.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pipeline.config.loading import load_task, to_data
from pipeline.config.stages import Collect, Foreign, Repaired
from pipeline.data import (
    METRIC_PREFIX,
    UNAPPROVED,
    UNKNOWN_SEED,
    DatasetMetadata,
    Trajectories,
    content_digest,
    load_dataset,
    metadata_digest,
    read_archive,
    read_metadata,
    told_of_source,
    write_dataset,
)
from pipeline.data.foreign import ImportTarget, kept_episodes, take_in
from pipeline.data.formats import read_foreign
from pipeline.data.spaces import keys_of, space_to_json
from pipeline.errors import BadInput, shortened
from pipeline.executors.players import Player, recording
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
from pipeline.play.demonstrators import Script, scripted
from pipeline.play.evaluation import records_of, summarise, with_intervals, with_snqi
from pipeline.policies import ActFunction
from pipeline.report.progress import ProgressBar
from pipeline.report.stage_pages import statistics_table
from pipeline.report.text import markdown_page
from pipeline.stages import StageOutcome
from pipeline.tasks import Task
from pipeline.tracking import lineage
from pipeline.tracking.datasets import (
    approvals,
    dataset_tags,
    download_dataset,
    find_dataset_run,
    find_refusals,
    log_dataset_input,
)
from pipeline.tracking.host import git_state
from pipeline.tracking.models import StoredPolicy, expert_to_ask, fetch_version, find_version
from pipeline.tracking.references import Reference
from pipeline.tracking.registry import moment_of_use, now, require_approved
from pipeline.tracking.runs import get_run
from pipeline.tracking.signatures import require_signature
from pipeline.tracking.stage_run import StageRun
from pipeline.validation.facts import Context, Refusal
from pipeline.validation.findings import PASSED
from pipeline.validation.replay import TaskReplay
from pipeline.validation.rules import validate

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
    if config.foreign is not None:
        return {config.source: _read(config, task, config.foreign)[1].content_digest}
    if config.repaired is not None:
        if config.repaired.folder is None:
            return {"repaired": find_dataset_run(run.client, config.repaired.dataset, task.config.name).info.run_id}
        return {"repaired": load_dataset(config.repaired.folder)[1].content_digest}
    if config.scripted is not None:
        chosen = scripted(config.scripted.demonstrator, config.scripted.kwargs)
        return {"demonstrator": chosen.provenance["digest"]}
    return {"demonstrator": _approved(run, task, upstream.get("expert", "latest")).digest}


def run(run: StageRun, config: Collect, upstream: Mapping[str, str]) -> StageOutcome:
    task = Task(load_task(config.task), config.environment)
    task.refuse_holdouts(config.scenario_set, "recording")
    # its identity and lineage go on record before any work starts
    if config.foreign is not None:
        given = _imported(run, config, task, config.foreign)
    elif config.repaired is not None:
        given = _repaired(run, config, task, config.repaired)
    else:
        given = _recorded(run, config, task, upstream.get("expert", "latest"))
    trajectories, metadata = given.trajectories, given.metadata
    with closing(TaskReplay(task)) as replay:
        context = Context(
            task=task.config,
            environment=config.environment,
            observation_space=task.observation_space,
            action_space=task.action_space,
            min_episodes=config.min_episodes,
            approvals=approvals(run.client, task.config.name, metadata.demonstrator),
            expected_digest=given.content_digest,
            expected_metadata_digest=metadata_digest(metadata.to_data()),
            replay=replay,
            replay_episodes=config.replay_episodes,
            act=given.act,
            refusals=given.refusals,
        )
        # what was written is validated, and only then does the dataset appear in the store, whole, with its status
        folder = run.folder / Artifact.DATASET
        write_dataset(folder, trajectories.to_arrays(), metadata.to_data())
        report = validate(folder, context)
    run.file(folder, Artifact.DATASET)
    run.text(report.to_json(), Artifact.VALIDATION_JSON)
    run.text(markdown_page("validation", report=report), Artifact.VALIDATION_MD)
    log_dataset_input(run, metadata, run.run_id, "recorded")
    run.tag(dataset_tags(metadata, report.status))
    sizes = {"dataset/episodes": len(trajectories), "dataset/steps": trajectories.steps}
    run.metrics({Metric.ENVIRONMENT_STEPS: given.steps, **sizes})
    lines = [f"collect: dataset {metadata.dataset_id}: {report.summary()}", f"  demonstrations: {metadata.origin}"]
    if (asked := metadata.requested_episodes) is not None and config.filter.drops and len(trajectories) < asked:
        lines.append(f"  warning: {len(trajectories)} of {asked} episodes: the filter dropped the others")
    lines += [f"  {line}" for line in told_of_source(metadata)]
    table = ""
    # data of another environment, or NaN, can be neither counted nor averaged
    if {"actions_in_space", "metrics_finite"} <= {o.rule for o in report.rules if o.state == PASSED}:
        records, figures = records_of(trajectories, task.action_space), trajectories.metrics
        run.text(statistics_table(records), "statistics.md")
        run.metrics({f"{EVAL_PREFIX}{name}": value for name, value in with_intervals(summarise(records)).items()})
        success, mean_return = (
            f"{figures[name].mean():{form}}" if name in figures else "not known"
            for name, form in ((Metric.SUCCESS, ".3f"), (Metric.RETURN, ".2f"))
        )
        lines.append(f"  success {success}, mean return {mean_return}, {given.steps:,} steps")
        table = statistics_table(records, outcomes=False, strips=True)
    return StageOutcome(tuple(lines), verdict=report.passed, outputs={"dataset": metadata.dataset_id}, table=table)


# --- recorded --------------------------------------------------------------------------------------------------------


def _recorded(run: StageRun, config: Collect, task: Task, reference: str) -> Demonstrations:
    """From the approved expert or the script; anything else is refused before the first step."""
    if config.scripted is not None:
        if reference != "latest":
            raise BadInput(f"expert {reference!r} and scripted.demonstrator exclude each other; give one of them")
        demonstrator, started = scripted(config.scripted.demonstrator, config.scripted.kwargs), now()
        player = Player(config.scripted.demonstrator, script=config.scripted)
    else:
        expert = _approved(run, task, reference)
        version = expert.version
        assert version is not None
        maker = {} if expert.run_id is None else get_run(run.client, expert.run_id, "expert").data.tags
        judge = f"{VersionTag.GATE_RUN_ID} of {expert.reference}"
        gate = get_run(run.client, version.tags[VersionTag.GATE_RUN_ID], judge)
        run.tag({**lineage.from_policy(expert, "expert", maker), lineage_run_tag("gate"): gate.info.run_id})
        demonstrator = expert.demonstrator(task)
        player = Player(expert.reference, str(expert.folder))
        started = moment_of_use(run.client, version, "collect")
    run.record_config(config, task.config, {"demonstrator": demonstrator.provenance["digest"]})
    total = None if config.filter.drops else config.episodes  # nobody knows how many it takes
    with ProgressBar("collect", total, "episodes") as progress:
        trajectories, steps = recording(task, player, config, progress.add)
    counted = _counted(run, task.config.name, trajectories)
    metadata = DatasetMetadata(
        **counted,
        created_at=started,
        task=task.config.name,
        scenario_set=config.scenario_set,
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
            "wrappers": task.wrappers,
            "scenarios": {scenario: task.config.scenarios[scenario] for scenario in counted["scenario_coverage"]},
        },
        holdout_scenarios=tuple(sorted(task.config.holdout_scenarios())),
        horizon=task.config.horizon,
        requested_episodes=config.episodes,
    )
    act = None if isinstance(demonstrator.actor, Script) else demonstrator.actor
    return Demonstrations(trajectories, metadata, steps, act, metadata.content_digest)


def _approved(run: StageRun, task: Task, reference: str) -> StoredPolicy:
    version = find_version(run.client, reference, task.config.name, Alias.APPROVED)
    require_approved(version, "collect")
    if task.config.approvers is not None:
        require_signature(run.client, version, task.config.approvers, "collect")
    return fetch_version(version)


def _counted(run: StageRun, task: str, trajectories: Trajectories) -> dict[str, Any]:
    """What a dataset's metadata say of this run, and of its arrays: that can be counted, whoever made them."""
    commit, dirty = git_state()
    coverage = Counter(str(scenario) for scenario in trajectories.scenarios)
    return {
        "dataset_id": f"{task}-{run.run_id[:8]}",
        "scenario_coverage": dict(sorted(coverage.items())),
        "episodes": len(trajectories),
        "steps": trajectories.steps,
        "content_digest": content_digest(trajectories),
        "run_id": run.run_id,
        "git_commit": commit,
        "git_dirty": dirty,
    }


# --- from outside ----------------------------------------------------------------------------------------------------


def _read(config: Collect, task: Task, source: Foreign) -> tuple[Trajectories, DatasetMetadata]:
    found = read_foreign(source.path, config.source, keys_of(task.observation_space))
    target = None
    if source.scenario is not None:
        target = ImportTarget(task, source.scenario, config.scenario_set, source.behind_wrappers)
    elif found.own_metadata is None:
        raise BadInput(
            f"{found.format} dataset: it was not exported by this product; say which task and scenario it belongs to: "
            f"{config.source}.scenario"
        )
    trajectories, metadata = take_in(found, target, source.leave_out, source.clip_actions)
    if target is None or task.config.snqi is None or any(part.startswith(METRIC_PREFIX) for part in metadata.missing):
        return trajectories, metadata
    trajectories = replace(trajectories, metrics=with_snqi(task.config, trajectories.metrics))
    return trajectories, replace(metadata, content_digest=content_digest(trajectories))


def _imported(run: StageRun, config: Collect, task: Task, source: Foreign) -> Demonstrations:
    """A dataset of others as one of ours. Whatever its file says of its demonstrator, to us it is `imported`."""
    trajectories, described = _read(config, task, source)
    if described.task != task.config.name:
        raise BadInput(
            f"{config.source}.path {source.path!r} is of task {shortened(described.task)}, this stage works on "
            f"{task.config.name!r}; say which scenario it belongs to: {config.source}.scenario"
        )
    run.record_config(config, task.config, {config.source: described.content_digest})
    run.tag(_exported_from(run, described))
    demonstrator = {**described.demonstrator, "kind": "imported", "approval": UNAPPROVED}
    counted = _counted(run, described.task, trajectories)
    metadata = replace(described, **counted, created_at=now(), demonstrator=demonstrator)
    act = expert_to_ask(run.client, demonstrator, described.task)
    return Demonstrations(trajectories, metadata, 0, act, described.content_digest)


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
        raise BadInput(f"it was exported from dataset {tags[Tag.DATASET_ID]}: {against}; record a new one")
    return lineage.from_dataset(origin)


def _repaired(run: StageRun, config: Collect, task: Task, source: Repaired) -> Demonstrations:
    """A repaired copy of a quarantined dataset, of the same origin; it inherits where the old one came from."""
    old = find_dataset_run(run.client, source.dataset, task.config.name)
    tags = old.data.tags
    name, quality = f"repaired.dataset {tags[Tag.DATASET_ID]}", tags.get(Tag.DATASET_QUALITY)
    if Tag.TAINT in tags:
        raise BadInput(f"{name} is tainted: {tags[Tag.TAINT]}; no repair of its data mends that")
    if quality != Quality.QUARANTINED:
        raise BadInput(f"{name} is {quality!r}; only a quarantined dataset is repaired")
    original = download_dataset(old)
    said = read_metadata(original / METADATA_FILE)
    trajectories, described = load_dataset(original if source.folder is None else source.folder)
    digest = described.content_digest
    data = described.to_data()
    for key in ORIGIN:
        if data[key] != said.get(key):
            raise BadInput(
                f"repaired.folder {source.folder!r}: {key} = {shortened(data[key])}, the dataset it repairs has "
                f"{shortened(said.get(key))}; a repair keeps its origin"
            )
    if source.leave_out:
        trajectories = trajectories.select(kept_episodes(len(trajectories), source.leave_out))
        digest = content_digest(trajectories)
        if described.demonstrator["kind"] == "imported":  # of others the seeds may not be known
            gone = [f"{index} of {described.dataset_id}" for index in sorted(source.leave_out)]
            left = [*described.demonstrator.get("left_out_episodes", ()), *gone]
            described = replace(described, demonstrator={**described.demonstrator, "left_out_episodes": left})
    elif source.folder is None:
        raise BadInput(f"{name}: give the folder of a repaired copy, or the episodes to leave out (repaired.leave_out)")
    run.record_config(config, task.config, inputs(run, config, {}))
    inherited = {key: value for key, value in tags.items() if key.startswith(LINEAGE_PREFIX)}
    run.tag({**inherited, lineage_run_tag("repaired"): old.info.run_id})
    # seeds of the episodes that it leaves out: those it names, and those that the old arrays still show
    absent = set(described.left_out)
    with contextlib.suppress(BadInput):  # the old arrays may be what was broken
        absent |= {int(seed) for seed in read_archive(original / TRAJECTORIES_FILE).get("seeds", np.zeros(0)).ravel()}
    left_out = tuple(sorted(absent - {*trajectories.seeds.tolist(), UNKNOWN_SEED}))
    metadata = replace(described, **_counted(run, described.task, trajectories), left_out=left_out)
    steps = int(old.data.metrics.get(Metric.ENVIRONMENT_STEPS, 0))
    act = expert_to_ask(run.client, described.demonstrator, described.task)
    # a copy is another dataset: how many episodes are enough for it is asked anew
    refusals = tuple(replace(r, min_episodes=0) for r in find_refusals(run.client, old))
    return Demonstrations(trajectories, metadata, steps, act, digest, refusals)
