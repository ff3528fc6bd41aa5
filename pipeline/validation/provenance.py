"""Rules about origin: who was recorded, on which episodes, and whether the metadata says so truthfully."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np

from pipeline.config.loading import to_data
from pipeline.data import UNKNOWN_SEED
from pipeline.envs.episodes import Episode
from pipeline.errors import shortened
from pipeline.names import Metric
from pipeline.tasks import PURPOSE_BITS, SEED_BITS, Purpose, Task
from pipeline.validation.report import Finding
from pipeline.validation.rules import Approval, Context, Dataset, no_task, rule

MOST_EPISODES = 1_000_000  # whose seeds are derived again
CLOCKS_APART = timedelta(minutes=5)  # of two machines
ORIGIN = ("metadata_complete", "lengths_aligned", "no_empty_episode")


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


@rule("seeds_unique", "Every episode has a seed of its own, of 31 bits where it was recorded here.", ORIGIN)
def seeds_unique(dataset: Dataset, context: Context) -> Iterable[Finding]:
    imported = dataset.metadata["demonstrator"]["kind"] == "imported"
    # where seeds are listed, the episode seeds followed from them and were written down
    may_be_unknown = imported and not dataset.metadata["seeds"]
    end = 1 << (63 if imported else SEED_BITS)
    first: dict[int, int] = {}
    unknown = 0
    for episode, seed in enumerate(dataset.arrays["seeds"].tolist()):
        if may_be_unknown and seed == UNKNOWN_SEED:
            unknown += 1
        elif not 0 <= seed < end:
            yield Finding("seeds_unique", episode, None, seed, f"[0, {end})", "the seed is out of range")
        elif seed in first:
            message = f"the seed {seed} is also that of episode {first[seed]}"
            yield Finding("seeds_unique", episode, None, seed, "seeds that differ", message)
        first.setdefault(seed, episode)
    if unknown:
        dataset.notes.append(f"the seeds of {unknown} of {len(dataset.lengths)} episodes are not known")


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


@rule(
    "shares",
    "Scenarios come in the requested shares, exact up to rounding; all of them after a filter.",
    ORIGIN,
)  # fmt: skip
def shares(dataset: Dataset, context: Context) -> Iterable[Finding]:
    requested, actual = dataset.metadata["requested_shares"], Counter(dataset.scenarios.tolist())
    total, count = sum(requested.values()), len(dataset.lengths)
    filtered, partial = _filtered(dataset), bool(dataset.metadata["left_out"])  # then episodes_derived counts them
    for scenario in sorted({*requested, *actual}):
        if scenario not in requested or total <= 0:
            message = f"scenario {shortened(scenario)} was recorded and not asked for"
            yield Finding("shares", None, None, actual[scenario], "= 0", message)
            continue
        wanted = count * requested[scenario] / total
        lowest = 0 if partial else 1 if filtered else wanted - 1
        highest = np.inf if filtered or partial else wanted + 1
        # a share below one episode may round to none
        if not min(lowest, wanted) <= actual[scenario] <= highest:
            bound = f">= {lowest:g}" if filtered else f"{wanted:.6g} +- 1"
            message = f"scenario {shortened(scenario)} has {actual[scenario]} of {count} episodes"
            yield Finding("shares", None, None, actual[scenario], bound, message)


def _filtered(dataset: Dataset) -> bool:
    kept = dataset.metadata["filter"]
    return bool(kept["only_success"]) or kept["min_return"] is not None


@rule("holdouts_excluded", "No episode is from a hold-out scenario.", ORIGIN)
def holdouts_excluded(dataset: Dataset, context: Context) -> Iterable[Finding]:
    held_out = set(dataset.metadata["holdout_scenarios"])
    held_out |= context.task.holdout_scenarios() if context.task else frozenset()
    for episode, scenario in enumerate(dataset.scenarios.tolist()):
        if scenario in held_out:
            message = f"the episode is from the hold-out scenario {shortened(scenario)}"
            yield Finding("holdouts_excluded", episode, None, scenario, "no hold-out scenario", message)


@rule(
    "matches_task", "Task, environment, scenarios, horizon and hold-outs are those of the task file.", ORIGIN, no_task
)
def matches_task(dataset: Dataset, context: Context) -> Iterable[Finding]:
    task, metadata = context.task, dataset.metadata
    assert task is not None
    recorded = metadata["environment"]
    covered = sorted({*dataset.scenarios.tolist()} & {*task.scenarios})
    facts = {
        "task": (metadata["task"], task.name),
        "environment.id": (recorded["id"], task.environment.id),
        "environment.kwargs": (recorded["kwargs"], to_data({**task.environment.kwargs, **context.environment})),
        "environment.wrappers": (
            recorded.get("wrappers", []),
            [to_data(wrapper) for wrapper in task.environment.wrappers],
        ),
        "environment.scenarios": (
            {scenario: recorded["scenarios"].get(scenario) for scenario in covered},
            to_data({scenario: task.scenarios[scenario] for scenario in covered}),
        ),
        "horizon": (metadata["horizon"], task.horizon),
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


def _not_chosen_here(dataset: Dataset, context: Context) -> str | None:
    if dataset.metadata["demonstrator"]["kind"] == "imported" and not dataset.metadata["seeds"]:
        return "nobody here chose the episodes"
    return no_task(dataset, context)


@rule(
    "episodes_derived",
    "The episodes are those that scenario set, listed seeds and requested number lead to, but for what was left out.",
    ("seeds_unique", "seeds_reserved", "coverage", "shares", "holdouts_excluded", "matches_task", "filter_held"),
    _not_chosen_here,
)
def episodes_derived(dataset: Dataset, context: Context) -> Iterable[Finding]:
    assert context.task is not None
    task, metadata, filtered = Task(context.task), dataset.metadata, _filtered(dataset)
    scenario_set, requested = metadata["scenario_set"], metadata["requested_shares"]
    of_set = task.shares(scenario_set)
    for scenario in sorted({*requested, *of_set}):
        if not np.isclose(requested.get(scenario, 0) / sum(requested.values()), of_set.get(scenario, 0)):
            message = f"the share of scenario {shortened(scenario)} is not the one of the set {scenario_set!r}"
            value, bound = requested.get(scenario, 0), f"= {of_set.get(scenario, 0):.6g}"
            yield Finding("episodes_derived", None, None, value, bound, message)
    present = [
        Episode(*pair) for pair in zip(dataset.scenarios.tolist(), dataset.arrays["seeds"].tolist(), strict=True)
    ]
    left_out, count = set(metadata["left_out"]), metadata["requested_episodes"]
    least = len(present) + len(left_out)
    # subtle: what a filter dropped is not on record; everything else must add up
    if count is None or (count < len(present) if filtered else count != least) or count > MOST_EPISODES:
        bound = f"{len(present)} to {MOST_EPISODES}" if filtered else f"= {least}: those there, and those left out"
        message = "the number of episodes that were asked for does not fit those that are there"
        yield Finding("episodes_derived", None, None, count, bound, message)
        return
    derived = task.recordable_episodes(scenario_set, metadata["seeds"], count, filtered)
    told = set(derived)
    for index, episode in enumerate(present):
        if episode not in told:
            message = f"seed {episode.seed} of scenario {episode.scenario} does not follow from the listed seeds"
            bound = f"one of {len(derived)} episodes of {scenario_set!r}"
            yield Finding("episodes_derived", index, None, episode.seed, bound, message)
    for seed in sorted(left_out - ({episode.seed for episode in derived} - {episode.seed for episode in present})):
        message = f"seed {seed} is said to be left out, but is there or was never asked for"
        yield Finding("episodes_derived", None, None, seed, "an episode that is missing", message)
    most = Counter(e.scenario for e in task.episodes(scenario_set, metadata["seeds"], count, Purpose.RECORD))
    actual = Counter(dataset.scenarios.tolist())
    for scenario in sorted(name for name in actual if filtered and actual[name] > most[name]):
        message = f"there are more episodes of scenario {shortened(scenario)} than were asked for"
        yield Finding("episodes_derived", None, None, actual[scenario], f"<= {most[scenario]}", message)


@rule("recorded_before_now", "Recording did not begin in the future.", ("metadata_complete",))
def recorded_before_now(dataset: Dataset, context: Context) -> Iterable[Finding]:
    now, said = datetime.now(UTC), dataset.metadata["created_at"]
    if datetime.fromisoformat(said) > now + CLOCKS_APART:
        message = "recording is said to have begun in the future"
        yield Finding("recorded_before_now", None, None, said, f"<= {now:%Y-%m-%dT%H:%M:%SZ}", message)


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


def _never_refused(dataset: Dataset, context: Context) -> str | None:
    return None if context.refusals else "the dataset is not quarantined"


@rule(
    "no_weaker",
    "What an earlier validation found wrong is asked again, of no fewer episodes.",
    ("lengths_aligned",),
    _never_refused,
)
def no_weaker(dataset: Dataset, context: Context) -> Iterable[Finding]:
    replayed = 0 if context.replay is None else context.replay_episodes
    for earlier in context.refusals:
        by = f"run {earlier.run_id} found the dataset wrong"
        wanted = min(earlier.replay_episodes, len(dataset.lengths))
        if replayed < wanted:
            message = f"{by} and simulated more episodes: a weaker validation does not lift that"
            yield Finding("no_weaker", None, None, replayed, f"replay_episodes >= {wanted}", message)
        if "minimum_episodes" in earlier.failed_rules and context.min_episodes < earlier.min_episodes:
            message = f"{by} and asked for more episodes: a weaker validation does not lift that"
            bound = f"min_episodes >= {earlier.min_episodes}"
            yield Finding("no_weaker", None, None, context.min_episodes, bound, message)
        if "labels" in earlier.failed_rules and context.act is None:
            message = f"{by} by asking its demonstrator, who cannot be asked any more"
            yield Finding("no_weaker", None, None, None, "the demonstrator, to ask it again", message)


PROVENANCE = (
    minimum_episodes, seeds_unique, seeds_reserved, coverage, shares, holdouts_excluded, matches_task, filter_held,
    episodes_derived, recorded_before_now, expert_approved, no_weaker,
)  # fmt: skip
