"""Rules about origin: who was recorded, on which episodes, and whether the metadata says so truthfully."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from pipeline.config.loading import to_data
from pipeline.errors import shortened
from pipeline.names import Metric
from pipeline.tasks import PURPOSE_BITS, SEED_BITS, Purpose
from pipeline.trajectories import UNKNOWN_SEED
from pipeline.validation.report import Finding
from pipeline.validation.rules import Approval, Context, Dataset, rule

ORIGIN = ("metadata_complete", "lengths_aligned", "no_empty_episode")


def no_task(dataset: Dataset, context: Context) -> str | None:
    return "the task was not given" if context.task is None else None


def no_approvals(dataset: Dataset, context: Context) -> str | None:
    if dataset.metadata["demonstrator"]["kind"] != "expert":
        return f"the demonstrator is {dataset.metadata['demonstrator']['kind']}, not a registered expert"
    return "the registry's record of approvals was not given" if context.approvals is None else None


@rule("minimum_episodes", "There are at least as many episodes as asked for.", ("lengths_aligned",))
def minimum_episodes(dataset: Dataset, context: Context) -> Iterable[Finding]:
    count = len(dataset.lengths)
    if count < context.min_episodes:
        message = f"{count} episodes are too few to train on"
        yield Finding("minimum_episodes", None, None, count, f">= {context.min_episodes}", message)


@rule("seeds_unique", "Every episode has a seed of its own, of 31 bits.", ORIGIN)
def seeds_unique(dataset: Dataset, context: Context) -> Iterable[Finding]:
    imported = dataset.metadata["demonstrator"]["kind"] == "imported"
    first: dict[int, int] = {}
    for episode, seed in enumerate(dataset.arrays["seeds"].tolist()):
        if imported and seed == UNKNOWN_SEED:
            continue  # nobody wrote it down; such an episode cannot be simulated again
        if not 0 <= seed < 1 << SEED_BITS:
            yield Finding("seeds_unique", episode, None, seed, f"[0, {1 << SEED_BITS})", "the seed is out of range")
        elif seed in first:
            message = f"the seed {seed} is also that of episode {first[seed]}"
            yield Finding("seeds_unique", episode, None, seed, "seeds that differ", message)
        first.setdefault(seed, episode)


@rule("seeds_reserved", "Episode seeds come from the range for recording: no evaluation shares them.", ORIGIN, no_task)
def seeds_reserved(dataset: Dataset, context: Context) -> Iterable[Finding]:
    if dataset.metadata["demonstrator"]["kind"] == "imported":
        return
    width = SEED_BITS - PURPOSE_BITS
    low, high = int(Purpose.RECORD) << width, (int(Purpose.RECORD) + 1) << width
    seeds = dataset.arrays["seeds"]
    for episode in np.flatnonzero((seeds < low) | (seeds >= high)):
        message = "the seed is not one of those that are kept for recording"
        yield Finding("seeds_reserved", int(episode), None, int(seeds[episode]), f"[{low}, {high})", message)


@rule("coverage", "The stated scenario coverage is what the data holds.", ORIGIN)
def coverage(dataset: Dataset, context: Context) -> Iterable[Finding]:
    stated, actual = dataset.metadata["scenario_coverage"], Counter(dataset.scenarios.tolist())
    for scenario in sorted({*stated, *actual}):
        if stated.get(scenario, 0) != actual[scenario]:
            message = f"scenario {shortened(scenario)} is stated for {stated.get(scenario, 0)} episodes"
            yield Finding("coverage", None, None, stated.get(scenario, 0), f"= {actual[scenario]}", message)


@rule("shares", "Scenarios come in the requested shares, exact up to rounding; all of them after a filter.", ORIGIN)
def shares(dataset: Dataset, context: Context) -> Iterable[Finding]:
    requested, actual = dataset.metadata["requested_shares"], Counter(dataset.scenarios.tolist())
    total, count = sum(requested.values()), len(dataset.lengths)
    kept = dataset.metadata["filter"]
    filtered = kept["only_success"] or kept["min_return"] is not None
    for scenario in sorted({*requested, *actual}):
        if scenario not in requested or total <= 0:
            message = f"scenario {shortened(scenario)} was recorded and not asked for"
            yield Finding("shares", None, None, actual[scenario], "= 0", message)
            continue
        wanted = count * requested[scenario] / total
        lowest = 1 if filtered else wanted - 1
        highest = np.inf if filtered else wanted + 1
        # a share below one episode may round to none
        if not min(lowest, wanted) <= actual[scenario] <= highest:
            bound = f">= {lowest:g}" if filtered else f"{wanted:.6g} +- 1"
            message = f"scenario {shortened(scenario)} has {actual[scenario]} of {count} episodes"
            yield Finding("shares", None, None, actual[scenario], bound, message)


@rule("holdouts_excluded", "No episode is from a hold-out scenario.", ORIGIN)
def holdouts_excluded(dataset: Dataset, context: Context) -> Iterable[Finding]:
    held_out = set(dataset.metadata["holdout_scenarios"])
    held_out |= context.task.holdout_scenarios() if context.task else frozenset()
    for episode, scenario in enumerate(dataset.scenarios.tolist()):
        if scenario in held_out:
            message = f"the episode is from the hold-out scenario {shortened(scenario)}"
            yield Finding("holdouts_excluded", episode, None, scenario, "no hold-out scenario", message)


@rule("matches_task", "Task, environment, scenario set and hold-outs are those of the task file.", ORIGIN, no_task)
def matches_task(dataset: Dataset, context: Context) -> Iterable[Finding]:
    task, metadata = context.task, dataset.metadata
    assert task is not None
    facts = {
        "task": (metadata["task"], task.name),
        "environment.id": (metadata["environment"]["id"], task.environment.id),
        "environment.wrappers": (
            metadata["environment"].get("wrappers", []),
            [to_data(wrapper) for wrapper in task.environment.wrappers],
        ),
        "holdout_scenarios": (sorted(metadata["holdout_scenarios"]), sorted(task.holdout_scenarios())),
    }
    for key, (value, expected) in facts.items():
        if value != expected:
            message = f"{key} differs from the task file"
            yield Finding("matches_task", None, None, shortened(value), shortened(expected), message)
    scenario_set = metadata["scenario_set"]
    if scenario_set not in task.scenario_sets:
        message = "the task file does not define this scenario set"
        yield Finding("matches_task", None, None, scenario_set, ", ".join(sorted(task.scenario_sets)), message)
        return
    allowed = set(task.scenario_sets[scenario_set]) | task.holdout_scenarios()  # hold-outs have a rule of their own
    for episode, scenario in enumerate(dataset.scenarios.tolist()):
        if scenario not in allowed:
            message = f"scenario {shortened(scenario)} is not in the set {scenario_set!r}"
            yield Finding("matches_task", episode, None, scenario, shortened(sorted(allowed)), message)


@rule("filter_held", "Only episodes that pass the stated filter were kept.", ("fits_spaces", "metrics_finite"))
def filter_held(dataset: Dataset, context: Context) -> Iterable[Finding]:
    kept, metrics = dataset.metadata["filter"], dataset.metrics
    if kept["min_return"] is not None:
        for episode in np.flatnonzero(metrics[Metric.RETURN] < kept["min_return"]):
            value, bound = float(metrics[Metric.RETURN][episode]), f">= {kept['min_return']}"
            yield Finding("filter_held", int(episode), None, value, bound, "the return is below the filter")
    if kept["only_success"]:
        success = metrics.get(Metric.SUCCESS, np.zeros(len(dataset.lengths)))
        for episode in np.flatnonzero(success != 1):
            message = "the episode is no success, and only successes were to be kept"
            yield Finding("filter_held", int(episode), None, float(success[episode]), "= 1", message)


@rule(
    "expert_approved", "The expert was approved, with these bytes, when recording began.", ORIGIN, no_approvals
)  # fmt: skip
def expert_approved(dataset: Dataset, context: Context) -> Iterable[Finding]:
    expert, recorded = dataset.metadata["demonstrator"], dataset.metadata["created_at"]
    periods = [a for a in context.approvals or () if a.version == expert["version"]]
    if not periods:
        known = ", ".join(sorted({a.version for a in context.approvals or ()})) or "none"
        message = f"version {expert['version']} was never approved"
        yield Finding("expert_approved", None, None, expert["version"], f"approved versions: {known}", message)
    elif not any(a.digest == expert["digest"] for a in periods):
        message = f"version {expert['version']} was approved with other bytes"
        yield Finding("expert_approved", None, None, expert["digest"], f"= {periods[-1].digest}", message)
    elif not any(_covers(a, recorded) and a.digest == expert["digest"] for a in periods):
        spans = "; ".join(f"{a.since} to {a.until or 'now'}" for a in periods)
        message = f"version {expert['version']} was not the approved expert at that time"
        yield Finding("expert_approved", None, None, recorded, f"within {spans}", message)


def _covers(approval: Approval, moment: str) -> bool:
    end = datetime.max.replace(tzinfo=UTC) if approval.until is None else datetime.fromisoformat(approval.until)
    return datetime.fromisoformat(approval.since) <= datetime.fromisoformat(moment) <= end


PROVENANCE = (
    minimum_episodes, seeds_unique, seeds_reserved, coverage, shares, holdouts_excluded, matches_task, filter_held,
    expert_approved,
)  # fmt: skip
