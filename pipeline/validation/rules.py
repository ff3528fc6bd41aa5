"""The catalogue: every rule that a dataset is held to, in the order they are asked, and `validate`, which asks them.

A rule is a function that yields what it finds wrong; without findings it holds. It is not run when a rule that it needs
does not hold, because its answer would mean nothing, when it says that a fact is missing (`NotAsked`), and when it is
about a part that the dataset says it does not have: then there is nothing that could be wrong.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
from scipy.special import ndtr

from pipeline.config.loading import to_data
from pipeline.config.stages import Filter
from pipeline.config.task import TaskConfig
from pipeline.data import (
    ARRAYS,
    ENDS,
    FINAL_OBSERVATIONS,
    METADATA_DIGEST,
    METRIC_PREFIX,
    REWARDS,
    SCHEMA_VERSION,
    SEEDS,
    UNKNOWN_SEED,
    DatasetMetadata,
    Trajectories,
    metadata_digest,
    metadata_faults,
    origin_of,
    read_archive,
    read_metadata,
    shape_faults,
)
from pipeline.data.observations import check_action_space, check_observation_space, flat_rows, from_rows, row_dtype
from pipeline.data.spaces import space_bounds
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput, disk_refusal, shortened
from pipeline.names import METADATA_FILE, TRAJECTORIES_FILE, Metric
from pipeline.tasks import Purpose, Task
from pipeline.tasks.seeds import PURPOSE_BITS, SEED_BITS
from pipeline.validation.alignment import traces_of_a_shift
from pipeline.validation.facts import Approval, Context, Dataset, chunks, plain
from pipeline.validation.findings import FAILED, NOT_RUN, PASSED, Finding, RuleOutcome, ValidationReport
from pipeline.validation.replay import first_difference

MAX_FINDINGS: Final = 20  # kept of one rule: enough to see the pattern
DTYPES: Final = {
    "rewards": "float32", "terminations": "bool", "truncations": "bool", "lengths": "int64", "seeds": "int64",
}  # fmt: skip
DECLARE = "; if the environment declares it too narrow: pipeline.envs.limits:DeclareObservation in environment.wrappers"
THROUGH = "; if it was recorded through them: behind_wrappers of collect's source"
CLIP = "; where the environment clips what it is given anyway: clip_actions of collect's source"
DECLARED = ("spaces",)  # called missing where nobody declared them
BOUND_RELATIVE = 1e-6  # of an observation bound: one rounding of float32
RETURN_TOLERANCE = 1e-4  # absolute, and
RETURN_RELATIVE = 1e-5  # of the sum of |r|: float32 rewards summed in any order stay within it
CONSTANT_STEPS = 10  # an episode this long whose actions never change is suspicious
CONSTANT_SHARE = 0.1  # of such episodes that is still accepted
NOISE_SIGMAS = 8.0  # a Gaussian draw further out does not happen
NOISE_ERRORS = 6.0  # standard errors of room for how strong noise is, on either side
ROUNDING = 1e-6  # of float32
MOST_EPISODES = 1_000_000  # whose seeds are derived again
CLOCKS_APART = timedelta(minutes=5)  # of two machines
ACT_ROWS = 4096  # observations answered together
LABEL_TOLERANCE = 1e-3  # of the half range: float32 on another processor stays far below
LABEL_SHARE = 1e-3  # of discrete labels that may differ

SOUND = ("fits_spaces",)  # which in turn needs every rule of form
ORIGIN = ("metadata_complete", "lengths_aligned", "no_empty_episode")
TIMED = ("fits_spaces", "ends", "observations_finite", "actions_finite", "rewards_finite")

Findings = Iterator[Finding]
Check = Callable[[Dataset, Context], Findings]


class NotAsked(Exception):
    """Why a rule cannot be asked of a dataset: the message is the reason that the report gives."""


@dataclass(frozen=True)
class Rule:
    """A named question to a dataset."""

    name: str
    statement: str
    needs: tuple[str, ...]  # rules without which this one means nothing
    check: Check
    about: tuple[str, ...] = ()  # parts of a dataset, of those that may be missing

    def findings(self, dataset: Dataset, context: Context) -> list[Finding]:
        """At most `MAX_FINDINGS`. Raises NotAsked.

        A rule that stumbles over the data has failed: what cannot be checked is not sound.
        """
        found = []
        try:
            for f in islice(self.check(dataset, context), MAX_FINDINGS):
                place = plain(f.episode), plain(f.step)
                found.append(Finding(plain(f.value), f.bound, f.message, *place, rule=self.name))
        except (ArithmeticError, LookupError, TypeError, ValueError, BadInput) as error:
            message = f"the rule could not be answered: {type(error).__name__}: {error}"
            found.append(Finding(None, self.statement, message[:300], rule=self.name))
        return found


CATALOGUE: Final[list[Rule]] = []
READABLE: Final = Rule(
    "readable", "Both files can be read safely: bounded sizes, no pickle, strict JSON.", (), lambda *_: iter(())
)


def rule(statement: str, *needs: str, about: tuple[str, ...] = ()) -> Callable[[Check], Rule]:
    """Decorator: a function that yields findings becomes the next rule of the catalogue."""

    def add(check: Check) -> Rule:
        CATALOGUE.append(Rule(check.__name__, statement, needs, check, about))
        return CATALOGUE[-1]

    return add


def validate(source: str | Path | tuple[Trajectories, DatasetMetadata], context: Context) -> ValidationReport:
    """Hold a dataset, a folder or one in memory, to the whole catalogue; what is wrong with the data raises nothing."""
    findings: list[Finding] = []
    parts: dict[str, Any] = {}
    if isinstance(source, tuple):
        parts = {TRAJECTORIES_FILE: source[0].to_arrays(), METADATA_FILE: source[1].to_data()}
    else:
        for name, reader in ((TRAJECTORIES_FILE, read_archive), (METADATA_FILE, read_metadata)):
            try:
                parts[name] = reader(Path(source) / name)
            except BadInput as error:
                if disk_refusal(error) is not None:  # that says nothing of the data
                    raise
                findings.append(Finding(name, READABLE.statement, str(error), rule=READABLE.name))
    outcomes = [RuleOutcome(READABLE.name, READABLE.statement, FAILED if findings else PASSED, len(findings))]
    asked = context.min_episodes, 0 if context.replay is None else context.replay_episodes
    if findings:
        reason = f"{READABLE.name} failed"
        outcomes += [RuleOutcome(entry.name, entry.statement, NOT_RUN, reason=reason) for entry in CATALOGUE]
        return ValidationReport(tuple(findings), tuple(outcomes), None, None, None, (), *asked)

    dataset, sound = Dataset(parts[TRAJECTORIES_FILE], parts[METADATA_FILE]), set[str]()
    for entry in CATALOGUE:
        try:
            for broken in (needed for needed in entry.needs if needed not in sound):
                raise NotAsked(f"{broken} does not hold")
            lacking = [part for part in entry.about if part in dataset.missing]
            if lacking:
                sound.add(entry.name)
                raise NotAsked(f"the dataset has no {', no '.join(lacking)}".replace("_", " "))
            found = entry.findings(dataset, context)
        except NotAsked as reason:
            outcomes.append(RuleOutcome(entry.name, entry.statement, NOT_RUN, reason=str(reason)))
            continue
        outcomes.append(RuleOutcome(entry.name, entry.statement, FAILED if found else PASSED, len(found)))
        findings += found
        if not found:
            sound.add(entry.name)
    lengths = dataset.arrays.get("lengths", np.array(None))
    episodes = len(lengths) if lengths.ndim else None
    steps = len(dataset.arrays["rewards"]) if "lengths_aligned" in sound else None
    return ValidationReport(
        tuple(findings), tuple(outcomes), episodes, steps, dataset.digest, tuple(dataset.notes), *asked
    )


# --- form: is everything there, of the right kind, and as long as it says --------------------------------------------


@rule("Every metadata key is there, of the right kind, and none that nobody reads.")
def metadata_complete(dataset: Dataset, context: Context) -> Findings:
    faults = metadata_faults(dataset.metadata)
    for key, value, allowed in faults:
        yield Finding(shortened(value), allowed, f"metadata key {key}: {allowed}")
    if not faults:
        dataset.notes.append(f"demonstrations: {origin_of(dataset.metadata['demonstrator'])}")


@rule("The metadata has its own digest, and the one the store recorded.", "metadata_complete")
def metadata_unchanged(dataset: Dataset, context: Context) -> Findings:
    actual = metadata_digest(dataset.metadata)
    stated = {"the metadata file": dataset.metadata[METADATA_DIGEST], "the store": context.expected_metadata_digest}
    for source, expected in stated.items():
        if expected not in (None, actual):
            message = f"the metadata was changed after it was written: its digest is not the one in {source}"
            yield Finding(actual, expected, message)


@rule(f"The schema version is {SCHEMA_VERSION}.", "metadata_complete")
def schema_version(dataset: Dataset, context: Context) -> Findings:
    version = dataset.metadata["schema_version"]
    if version != SCHEMA_VERSION:
        yield Finding(version, f"= {SCHEMA_VERSION}", f"schema version {version} is not the one this code reads")


@rule("Every array is there, and every figure the task measures.")
def arrays_present(dataset: Dataset, context: Context) -> Findings:
    figures: list[str] = [Metric.RETURN, Metric.LENGTH]
    if context.task is not None:
        figures += [Metric.SUCCESS, *context.task.metrics, *([Metric.COLLISION] if context.task.collision else [])]
    for name in (*ARRAYS, *(METRIC_PREFIX + figure for figure in figures)):
        if name not in dataset.arrays and name not in dataset.missing:
            yield Finding(None, f"array {name}", f"the array {name} is missing")
    for name in dataset.arrays:
        if name not in ARRAYS and not name.startswith(METRIC_PREFIX):
            bound = f"{', '.join(ARRAYS)} and metric.<name>"
            yield Finding(name, bound, f"there is an array {shortened(name)} too much")


@rule("Rewards, ends, lengths, seeds, scenarios and metrics have their fixed dtypes.", "arrays_present")
def dtypes(dataset: Dataset, context: Context) -> Findings:
    expected = DTYPES | {name: "float64" for name in dataset.arrays if name.startswith(METRIC_PREFIX)}
    for name, dtype in expected.items():
        actual = dataset.arrays[name].dtype
        if actual != np.dtype(dtype):
            yield Finding(str(actual), dtype, f"{name} is {actual}, expected {dtype}")
    actual = dataset.scenarios.dtype
    if actual.kind != "U":
        yield Finding(str(actual), "text", f"scenarios is {actual}, expected text")


@rule("Every array has one row per step, or per episode.", "arrays_present", "dtypes")
def lengths_aligned(dataset: Dataset, context: Context) -> Findings:
    for name, actual, expected in shape_faults(dataset.arrays):
        if name != "observations":
            yield Finding(actual, expected, f"{name} has {actual}, expected {expected}")


@rule(
    "Every episode of T steps has T + 1 observations.",
    "arrays_present", "dtypes", "lengths_aligned", about=(FINAL_OBSERVATIONS,),
)  # fmt: skip
def one_observation_more(dataset: Dataset, context: Context) -> Findings:
    rows, steps, episodes = len(dataset.arrays["observations"]), int(dataset.lengths.sum()), len(dataset.lengths)
    if rows != steps + episodes:
        message = f"{rows} observations for {steps} steps in {episodes} episodes"
        yield Finding(rows, f"= {steps + episodes}", message)


@rule("Only what was recorded elsewhere lacks parts, and it lacks them.", "metadata_complete", "one_observation_more")
def missing_parts(dataset: Dataset, context: Context) -> Findings:
    if dataset.missing and dataset.metadata["demonstrator"]["kind"] != "imported":
        yield Finding(shortened(dataset.missing), "none", "what was recorded here has all of its parts")
    lacks = {*dataset.trajectories.missing, *DECLARED}
    for part in dataset.missing:
        if part not in lacks and not (part.startswith(METRIC_PREFIX) and part not in dataset.arrays):
            yield Finding(
                part, ", ".join(sorted(lacks)), f"the metadata says that {part} is missing, the arrays have it"
            )


@rule("There is an episode, and each has at least one step.", "lengths_aligned")
def no_empty_episode(dataset: Dataset, context: Context) -> Findings:
    if not len(dataset.lengths):
        yield Finding(0, ">= 1 episode", "the dataset holds no episode")
    for episode in np.flatnonzero(dataset.lengths < 1):
        yield Finding(0, ">= 1 step", "the episode has no step", episode)


@rule("The content has the digest in the metadata and in the store.", "arrays_present", "metadata_complete")
def digest(dataset: Dataset, context: Context) -> Findings:
    stated = {"the metadata": dataset.metadata["content_digest"], "the store": context.expected_digest}
    for source, expected in stated.items():
        if expected not in (None, dataset.digest):
            message = f"the arrays are not those that were recorded: their digest differs from the one in {source}"
            yield Finding(dataset.digest, f"= {expected}", message)


@rule("The metadata counts the episodes and steps that are there.", "metadata_complete", "lengths_aligned")
def counts(dataset: Dataset, context: Context) -> Findings:
    for key, actual in (("episodes", len(dataset.lengths)), ("steps", int(dataset.lengths.sum()))):
        stated = dataset.metadata[key]
        if stated != actual:
            yield Finding(stated, f"= {actual}", f"the metadata claims {stated} {key}, the arrays hold {actual}")


@rule("The declared spaces can be read, and are those of the task's environment.", "metadata_complete", about=DECLARED)
def spaces(dataset: Dataset, context: Context) -> Findings:
    checks = {"observation_space": check_observation_space, "action_space": check_action_space}
    for key, check in checks.items():
        value, bound, of_task = dataset.metadata[key], "a space as JSON", getattr(context, key)
        try:
            value, bound = getattr(dataset, key), "a space that policies take"
            check(value)
        except BadInput as error:
            yield Finding(shortened(value), bound, f"{key}: {error}")
            continue
        if of_task is not None and not same_space(value, of_task):
            yield Finding(shortened(value), shortened(of_task), f"{key} is not the one of the task's environment")


def same_space(a: gym.Space, b: gym.Space) -> bool:
    """Equal in kind, dtype, shape and every bound; gymnasium's `==` allows a tolerance."""
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, gym.spaces.Dict) and isinstance(b, gym.spaces.Dict):
        return set(a.spaces) == set(b.spaces) and all(same_space(a[key], b[key]) for key in a.spaces)
    if isinstance(a, gym.spaces.Box) and isinstance(b, gym.spaces.Box):
        return np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high)
    return bool(a == b)


@rule(
    "Observations and actions have the dtype and shape of the declared spaces.",
    "spaces", "one_observation_more", "lengths_aligned", "no_empty_episode",
)  # fmt: skip
def fits_spaces(dataset: Dataset, context: Context) -> Findings:
    declared = {"observations": dataset.observation_space, "actions": dataset.action_space}
    for name, space in (declared | {"executed_actions": dataset.action_space}).items():
        array, row = dataset.arrays[name], row_dtype(space)
        actual, expected = f"{array.dtype} {array.shape[1:]}", f"{row.base} {row.shape}"
        if actual != expected:
            yield Finding(actual, expected, f"one row of {name} is {actual}, the declared space says {expected}")


# --- values: finite, in range, consistent with each other, and not degenerate ----------------------------------------


@rule("No observation is NaN or infinite.", *SOUND)
def observations_finite(dataset: Dataset, context: Context) -> Findings:
    return _not_finite(dataset, "observations")


@rule("No action, label or executed, is NaN or infinite.", *SOUND)
def actions_finite(dataset: Dataset, context: Context) -> Findings:
    return _not_finite(dataset, "actions", "executed_actions")


def _not_finite(dataset: Dataset, *names: str) -> Findings:
    for name in names:
        if np.isfinite(dataset.ranges[name]).all():
            continue
        rows = flat_rows(dataset.arrays[name])
        for part in chunks(len(rows)):
            for row, feature in np.argwhere(~np.isfinite(rows[part])):
                value, place = rows[part][row, feature], dataset.place(name, part.start + row)
                yield Finding(value, "finite", f"{dataset.element(name, feature)} is {value}", *place)


@rule("No reward is NaN or infinite.", *SOUND, about=(REWARDS,))
def rewards_finite(dataset: Dataset, context: Context) -> Findings:
    rewards = dataset.arrays["rewards"]
    for row in np.flatnonzero(~np.isfinite(rewards)):
        yield Finding(rewards[row], "finite", f"the reward is {rewards[row]}", *dataset.place("rewards", row))


@rule("No figure of an episode is NaN or infinite.", *SOUND)
def metrics_finite(dataset: Dataset, context: Context) -> Findings:
    for name, values in dataset.metrics.items():
        for episode in np.flatnonzero(~np.isfinite(values)):
            yield Finding(values[episode], "finite", f"metric {name} is {values[episode]}", episode)


@rule("Every action, label or executed, lies in the action space.", *SOUND, about=DECLARED)
def actions_in_space(dataset: Dataset, context: Context) -> Findings:
    hint = CLIP if dataset.metadata["demonstrator"]["kind"] == "imported" else ""
    yield from _outside(dataset, "actions", dataset.action_space, hint=hint)
    yield from _outside(dataset, "executed_actions", dataset.action_space, hint=hint)


@rule("Every observation lies in the observation space where that is bounded.", *SOUND, about=DECLARED)
def observations_in_space(dataset: Dataset, context: Context) -> Findings:
    return _outside(dataset, "observations", dataset.observation_space, BOUND_RELATIVE, DECLARE)


def _outside(dataset: Dataset, name: str, space: gym.Space, relative: float = 0.0, hint: str = "") -> Findings:
    """Finite values beyond a bound; NaN and infinities belong to the rules about them."""
    low, high = declared = space_bounds(space)
    if relative and low.dtype.kind == "f":
        room = [relative * np.where(np.isfinite(bound), np.maximum(1.0, np.abs(bound)), 0.0) for bound in declared]
        with np.errstate(over="ignore"):
            low, high = low - room[0], high + room[1]
    smallest, largest = dataset.ranges[name]
    rows = flat_rows(dataset.arrays[name])
    for feature in np.flatnonzero(~((smallest >= low) & (largest <= high))):
        column = rows[:, feature]
        bound = f"[{plain(declared[0][feature])}, {plain(declared[1][feature])}]"
        message = f"{dataset.element(name, feature)} is outside its space{hint}"
        for row in np.flatnonzero(np.isfinite(column) & ((column < low[feature]) | (column > high[feature]))):
            yield Finding(column[row], bound, message, *dataset.place(name, row))


@rule(
    "The rewards of each episode sum to its stored return.",
    *SOUND,
    "rewards_finite",
    "metrics_finite",
    about=(REWARDS,),
)
def returns(dataset: Dataset, context: Context) -> Findings:
    rewards, starts = dataset.arrays["rewards"].astype(np.float64), dataset.step_offsets[:-1]
    sums, sizes = np.add.reduceat(rewards, starts), np.add.reduceat(np.abs(rewards), starts)
    stored, tolerance = dataset.metrics[Metric.RETURN], RETURN_TOLERANCE + RETURN_RELATIVE * sizes
    for episode in np.flatnonzero(np.abs(stored - sums) > tolerance):
        bound = f"{sums[episode]:.9g} +- {tolerance[episode]:.3g}"
        yield Finding(stored[episode], bound, "the stored return is not the sum of the rewards", episode)


@rule("The stored length of each episode is its number of steps.", *SOUND, "metrics_finite")
def lengths(dataset: Dataset, context: Context) -> Findings:
    stored = dataset.metrics[Metric.LENGTH]
    for episode in np.flatnonzero(stored != dataset.lengths):
        bound = f"= {dataset.lengths[episode]}"
        yield Finding(stored[episode], bound, "the stored length is not the number of steps", episode)


@rule("Success and collision are 0 or 1; not both 1 where the task file excludes it.", *SOUND, "metrics_finite")
def outcomes(dataset: Dataset, context: Context) -> Findings:
    both = np.full(len(dataset.lengths), True)
    for name in (Metric.SUCCESS, Metric.COLLISION):
        values = dataset.metrics.get(name, np.zeros(len(dataset.lengths)))
        both &= values == 1
        for episode in np.flatnonzero((values != 0) & (values != 1)):
            yield Finding(values[episode], "0 or 1", f"{name} is neither 0 nor 1", episode)
    if context.task is not None and context.task.success_excludes_collision:
        for episode in np.flatnonzero(both):
            message = "the episode claims success and collision at once"
            yield Finding("both", "success or collision", message, episode)


@rule("No figure lies outside of what the task file calls possible.", *SOUND, "metrics_finite")
def figures_possible(dataset: Dataset, context: Context) -> Findings:
    for name, measure in _task(context).metrics.items():
        values = dataset.metrics.get(name, np.zeros(0))  # none, where the metadata says so
        low, high = (-np.inf if measure.min is None else measure.min), (np.inf if measure.max is None else measure.max)
        for episode in np.flatnonzero((values < low) | (values > high)):
            yield Finding(values[episode], f"[{low:g}, {high:g}]", f"{name} is impossible by the task file", episode)


def _task(context: Context) -> TaskConfig:
    if context.task is None:
        raise NotAsked("the task was not given")
    return context.task


@rule("Every episode ends exactly once, at its last step.", *SOUND, about=(ENDS,))
def ends(dataset: Dataset, context: Context) -> Findings:
    ended = dataset.arrays["terminations"] | dataset.arrays["truncations"]
    last = np.zeros_like(ended)
    last[dataset.step_offsets[1:] - 1] = True
    for row in np.flatnonzero(ended != last):
        episode, step = dataset.place("rewards", row)
        value, bound = ("end", "no end before the last step") if ended[row] else ("no end", "an end at the last step")
        yield Finding(value, bound, f"{value} at step {step} of {dataset.lengths[episode]}", episode, step)


@rule("No episode is longer than the horizon.", *SOUND)
def horizon(dataset: Dataset, context: Context) -> Findings:
    limit = dataset.metadata["horizon"]
    for episode in np.flatnonzero(dataset.lengths > (np.inf if limit is None else limit)):
        yield Finding(dataset.lengths[episode], f"<= {limit}", "the episode outlasts the horizon", episode)


@rule("Actions are not constant or all zero, over the dataset and within episodes.", *SOUND)
def actions_vary(dataset: Dataset, context: Context) -> Findings:
    low, high = dataset.ranges["actions"]
    rows = flat_rows(dataset.arrays["actions"])
    if len(rows) > 1 and np.array_equal(low, high):
        kind = "all zero" if not low.any() else "constant"
        message = f"every action of the dataset is the same: {kind}"
        yield Finding(f"{kind}: {low.tolist()[:8]}", "actions that differ", message)
        return
    changes = np.concatenate([[0], np.cumsum((rows[1:] != rows[:-1]).any(axis=1))])
    first, last = dataset.step_offsets[:-1], dataset.step_offsets[1:] - 1
    still = (changes[last] == changes[first]) & (dataset.lengths >= CONSTANT_STEPS)
    if still.mean() > CONSTANT_SHARE:
        for episode in np.flatnonzero(still):
            message = f"the action never changes in the episode, as in {still.sum()} of {len(still)} episodes"
            yield Finding(f"{still.mean():.1%}", f"at most {CONSTANT_SHARE:.0%} of episodes", message, episode)


@rule("No episode was stored with fewer digits than the others.", *SOUND, "observations_finite")
def precision(dataset: Dataset, context: Context) -> Findings:
    """An episode that went through a smaller float type has zeros in the low bits of every value."""
    rows = flat_rows(dataset.arrays["observations"])
    kinds: dict[str, tuple[type[np.unsignedinteger], int, str]] = {
        "float32": (np.uint32, 13, "float16"),
        "float64": (np.uint64, 29, "float32"),
    }
    if rows.dtype.name not in kinds:
        return
    kind, low_bits, smaller = kinds[rows.dtype.name]
    mask = kind((1 << low_bits) - 1)
    used = np.zeros((len(dataset.lengths), rows.shape[1]), dtype=bool)  # does the episode use the low bits of a feature
    values = np.zeros(rows.shape[1])  # that use them
    for number, (first, last) in enumerate(pairwise(dataset.row_offsets)):
        low = (rows[first:last].view(kind) & mask) != 0
        used[number] = low.any(axis=0)
        values += low.sum(axis=0)
    continuous = values / len(rows) > 0.9  # features whose values nearly always need every digit
    if continuous.any():
        for episode in np.flatnonzero(~used[:, continuous].any(axis=1) & (dataset.lengths >= CONSTANT_STEPS)):
            message = f"every observation of the episode is a {smaller} value, those of other episodes are not"
            yield Finding(smaller, rows.dtype.name, message, episode)


@rule("No two episodes are the same, but where a small world leads there from both seeds.", *SOUND)
def episodes_distinct(dataset: Dataset, context: Context) -> Findings:
    data = dataset.trajectories
    first: dict[bytes, int] = {}  # digest of an episode -> the first with these bits
    copies: dict[int, int] = {}
    for index in range(len(data)):
        episode = data.episode(index)
        parts = (episode.observations, episode.executed_actions, episode.rewards)
        bits = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        other = first.setdefault(hashlib.sha256(bits).digest(), index)
        if other != index:
            copies[index] = other

    def leads_there(index: int) -> bool:
        """The environment plays the episode from its own seed, which no other episode has (rule seeds_unique)."""
        episode = data.episode(index)
        if context.replay is None or context.replay_episodes == 0 or episode.seed == UNKNOWN_SEED:
            return False
        try:
            again = context.replay(episode)
        except BadInput:
            return False
        return first_difference(episode, again) is None

    distinct, least = len(first), context.min_episodes
    enough = distinct >= least  # else it is one demonstration, many times
    few = "" if enough else f"; a small world may lead to copies beside {least} others, here {distinct}"
    honest = 0
    for index, other in copies.items():
        if enough and leads_there(index):
            honest += 1
            continue
        message = f"the episode is a copy of episode {other}, step for step{few}"
        yield Finding(f"copy of {other}", "distinct episodes", message, index)
    if honest:
        dataset.notes.append(f"{honest} episodes equal an earlier one; re-simulation leads there from their own seeds")


@rule("What was executed is the label plus the declared noise.", *SOUND, "actions_finite", "actions_in_space")
def execution_noise(dataset: Dataset, context: Context) -> Findings:
    std, space = float(dataset.metadata["noise_std"]), dataset.action_space
    clean, executed = (flat_rows(dataset.arrays[name]) for name in ("actions", "executed_actions"))
    replaced = (clean != executed).any(axis=1)
    low, high = space_bounds(space)
    of_others = dataset.metadata["demonstrator"]["kind"] == "imported" and not dataset.metadata["seeds"]
    if std == 0 and of_others and replaced.any():
        raise NotAsked("it was recorded elsewhere, and nobody says with what noise")
    if std == 0:
        for row in np.flatnonzero(replaced):
            message = "the executed action is not the label, and no noise is declared"
            yield Finding(str(executed[row].tolist()[:8]), "= label", message, *dataset.place("actions", row))
    elif space.dtype is not None and space.dtype.kind == "f":
        yield from _gaussian_noise(dataset, std, clean, executed)
    else:  # a random action is the label itself one time in the number of choices
        choices = float(np.prod(high.astype(np.float64) - low + 1))
        share, count, expected = float(replaced.mean()), len(replaced), min(1.0, std) * (1 - 1 / choices)
        slack = NOISE_ERRORS * np.sqrt(expected * (1 - expected) / count)
        if abs(share - expected) > slack or (share == 0 and expected * count >= 25):  # less likely than 1 in 10^10
            message = f"the share of actions that differ from their label does not fit the declared noise of {std:g}"
            yield Finding(share, f"{expected:.6g} +- {slack:.6g}", message)


def _gaussian_noise(dataset: Dataset, std: float, clean: np.ndarray, executed: np.ndarray) -> Findings:
    low, high = space_bounds(dataset.action_space)
    with np.errstate(over="ignore"):
        sigma = std * (high.astype(np.float64) - low) / 2
    if not np.isfinite(sigma).all():
        return  # without bounds there is no half range to measure noise in
    for feature in np.flatnonzero(sigma > 0):
        label, scale = clean[:, feature].astype(np.float64), sigma[feature]
        noise = np.abs(executed[:, feature] - label)
        largest = NOISE_SIGMAS * scale
        for row in np.flatnonzero(noise > largest):
            message = f"executed action {feature} differs from its label by more than the declared noise can"
            yield Finding(noise[row], f"<= {largest:.6g}", message, *dataset.place("actions", row))
        square, deviation = clipped_squares((low[feature] - label) / scale, (high[feature] - label) / scale)
        spread, expected = float(np.sqrt(np.mean(noise**2))), float(scale * np.sqrt(square.mean()))
        # the standard error of a root mean square: that of the mean square over twice the root
        error = float(scale * np.sqrt((deviation**2).sum()) / len(noise) / (2 * np.sqrt(square.mean())))
        least, most = expected - NOISE_ERRORS * error, expected + NOISE_ERRORS * error + ROUNDING * largest
        if not least <= spread <= most or (len(noise) >= CONSTANT_STEPS and spread == 0.0):
            message = f"executed action {feature} does not show the declared noise of {std:g} half ranges"
            yield Finding(spread, f"[{least:.6g}, {most:.6g}]" if least > 0 else f"(0, {most:.6g}]", message)


def clipped_squares(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `clip(z, low, high)**2` for a standard normal z; low <= 0 <= high, each (S,).

    Integrals of z^2 and z^4 over the density between the bounds, and the bounds themselves with the mass beyond them.
    """
    low, high = np.maximum(low, -40.0), np.minimum(high, 40.0)  # infinity times a density of 0 would be NaN
    below, above = ndtr(low), ndtr(-high)
    inside = 1 - below - above
    at_low, at_high = (np.exp(-(bound**2) / 2) / np.sqrt(2 * np.pi) for bound in (low, high))
    second = inside - (high * at_high - low * at_low) + low**2 * below + high**2 * above
    fourth = 3 * inside - ((high**3 + 3 * high) * at_high - (low**3 + 3 * low) * at_low)
    fourth += low**4 * below + high**4 * above
    return second, np.sqrt(np.maximum(0.0, fourth - second**2))


# --- origin: who was recorded, on which episodes, and does the metadata say so truthfully ----------------------------


@rule("There are at least as many episodes as asked for.", "lengths_aligned")
def minimum_episodes(dataset: Dataset, context: Context) -> Findings:
    count = len(dataset.lengths)
    if count < context.min_episodes:
        yield Finding(count, f">= {context.min_episodes}", f"{count} episodes are too few to train on")


@rule("Every episode has a seed of its own, of 31 bits where it was recorded here.", *ORIGIN)
def seeds_unique(dataset: Dataset, context: Context) -> Findings:
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
            yield Finding(seed, f"[0, {end})", "the seed is out of range", episode)
        elif seed in first:
            yield Finding(seed, "seeds that differ", f"the seed {seed} is also that of episode {first[seed]}", episode)
        first.setdefault(seed, episode)
    if unknown:
        dataset.notes.append(f"the seeds of {unknown} of {len(dataset.lengths)} episodes are not known")


@rule("Episode seeds come from the range for recording: no evaluation shares them.", *ORIGIN)
def seeds_reserved(dataset: Dataset, context: Context) -> Findings:
    _task(context)  # of a dataset without one nobody knows who chose the seeds
    if dataset.metadata["demonstrator"]["kind"] == "imported":
        return
    width = SEED_BITS - PURPOSE_BITS
    low, high = int(Purpose.RECORD) << width, (int(Purpose.RECORD) + 1) << width
    seeds = dataset.arrays["seeds"]
    for episode in np.flatnonzero((seeds < low) | (seeds >= high)):
        message = "the seed is not one of those that are kept for recording"
        yield Finding(seeds[episode], f"[{low}, {high})", message, episode)


@rule("The stated scenario coverage is what the data holds.", *ORIGIN)
def coverage(dataset: Dataset, context: Context) -> Findings:
    stated, actual = Counter(dataset.metadata["scenario_coverage"]), Counter(dataset.scenarios.tolist())
    for scenario in sorted({*stated, *actual}):
        if stated[scenario] != actual[scenario]:
            message = f"scenario {shortened(scenario)} is stated for {stated[scenario]} episodes"
            yield Finding(stated[scenario], f"= {actual[scenario]}", message)


@rule("Scenarios come in the requested shares, exact up to rounding; all of them after a filter.", *ORIGIN)
def shares(dataset: Dataset, context: Context) -> Findings:
    requested, actual = dataset.metadata["requested_shares"], Counter(dataset.scenarios.tolist())
    total, count = sum(requested.values()), len(dataset.lengths)
    filtered = Filter(**dataset.metadata["filter"]).drops
    partial = bool(dataset.metadata["left_out"])  # then episodes_derived counts them
    for scenario in sorted({*requested, *actual}):
        if scenario not in requested or total <= 0:
            yield Finding(actual[scenario], "= 0", f"scenario {shortened(scenario)} was recorded and not asked for")
            continue
        wanted = count * requested[scenario] / total
        lowest = 0 if partial else 1 if filtered else wanted - 1
        highest = np.inf if filtered or partial else wanted + 1
        # a share below one episode may round to none
        if not min(lowest, wanted) <= actual[scenario] <= highest:
            bound = f">= {lowest:g}" if filtered else f"{wanted:.6g} +- 1"
            message = f"scenario {shortened(scenario)} has {actual[scenario]} of {count} episodes"
            yield Finding(actual[scenario], bound, message)


@rule("No episode is from a hold-out scenario.", *ORIGIN)
def holdouts_excluded(dataset: Dataset, context: Context) -> Findings:
    held_out = set(dataset.metadata["holdout_scenarios"])
    held_out |= context.task.holdout_scenarios() if context.task else frozenset()
    for episode in np.flatnonzero(np.isin(dataset.scenarios, sorted(held_out))):
        scenario = str(dataset.scenarios[episode])
        message = f"the episode is from the hold-out scenario {shortened(scenario)}"
        yield Finding(scenario, "no hold-out scenario", message, episode)


@rule("Task, environment, scenarios, horizon and hold-outs are those of the task file.", *ORIGIN)
def matches_task(dataset: Dataset, context: Context) -> Findings:
    task, metadata, recorded = _task(context), dataset.metadata, dataset.metadata["environment"]
    covered = sorted({*dataset.scenarios.tolist()} & {*task.scenarios})
    facts: dict[str, tuple[Any, Any]] = {
        "task": (metadata["task"], task.name),
        "environment.id": (recorded["id"], task.environment.id),
        "environment.kwargs": (recorded["kwargs"], {**task.environment.kwargs, **context.environment}),
        "environment.wrappers": (recorded.get("wrappers", []), list(task.environment.wrappers)),
        "environment.scenarios": (
            {scenario: recorded["scenarios"].get(scenario) for scenario in covered},
            {scenario: task.scenarios[scenario] for scenario in covered},
        ),
        "horizon": (metadata["horizon"], task.horizon),
        "holdout_scenarios": (sorted(metadata["holdout_scenarios"]), sorted(task.holdout_scenarios())),
    }
    for key, (value, stated) in facts.items():
        expected = to_data(stated)
        if value != expected:
            remedy = THROUGH if key == "environment.wrappers" and not value else ""
            yield Finding(shortened(value), shortened(expected), f"{key} differs from the task file{remedy}")
    scenario_set = metadata["scenario_set"]
    if scenario_set not in task.scenario_sets:
        message = "the task file does not define this scenario set"
        yield Finding(scenario_set, ", ".join(sorted(task.scenario_sets)), message)
        return
    allowed = set(task.scenario_sets[scenario_set]) | task.holdout_scenarios()  # hold-outs have a rule of their own
    for episode, scenario in enumerate(dataset.scenarios.tolist()):
        if scenario not in allowed:
            message = f"scenario {shortened(scenario)} is not in the set {scenario_set!r}"
            yield Finding(scenario, shortened(sorted(allowed)), message, episode)


@rule("Only episodes that pass the stated filter were kept.", "fits_spaces", "metrics_finite")
def filter_held(dataset: Dataset, context: Context) -> Findings:
    kept, metrics = dataset.metadata["filter"], dataset.metrics
    if kept["min_return"] is not None:
        for episode in np.flatnonzero(metrics[Metric.RETURN] < kept["min_return"]):
            bound = f">= {kept['min_return']}"
            yield Finding(metrics[Metric.RETURN][episode], bound, "the return is below the filter", episode)
    if kept["only_success"]:
        success = metrics.get(Metric.SUCCESS, np.zeros(len(dataset.lengths)))
        for episode in np.flatnonzero(success != 1):
            message = "the episode is no success, and only successes were to be kept"
            yield Finding(success[episode], "= 1", message, episode)


@rule(
    "The episodes are those that scenario set, listed seeds and requested number lead to, but for what was left out.",
    "seeds_unique", "seeds_reserved", "coverage", "shares", "holdouts_excluded", "matches_task", "filter_held",
)  # fmt: skip
def episodes_derived(dataset: Dataset, context: Context) -> Findings:
    metadata = dataset.metadata
    if metadata["demonstrator"]["kind"] == "imported" and not metadata["seeds"]:
        raise NotAsked("nobody here chose the episodes")
    task, filtered = Task(_task(context)), Filter(**metadata["filter"]).drops
    scenario_set, requested = metadata["scenario_set"], metadata["requested_shares"]
    of_set = task.shares(scenario_set)
    for scenario in sorted({*requested, *of_set}):
        share, expected = requested.get(scenario, 0), of_set.get(scenario, 0)
        if not np.isclose(share / sum(requested.values()), expected):
            message = f"the share of scenario {shortened(scenario)} is not the one of the set {scenario_set!r}"
            yield Finding(share, f"= {expected:.6g}", message)
    scenarios, seeds = dataset.scenarios.tolist(), dataset.arrays["seeds"].tolist()
    present = [Episode(*pair) for pair in zip(scenarios, seeds, strict=True)]
    left_out, count = set(metadata["left_out"]), metadata["requested_episodes"]
    least = len(present) + len(left_out)
    # subtle: what a filter dropped is not on record; everything else must add up
    if count is None or (count < len(present) if filtered else count != least) or count > MOST_EPISODES:
        bound = f"{len(present)} to {MOST_EPISODES}" if filtered else f"= {least}: those there, and those left out"
        message = "the number of episodes that were asked for does not fit those that are there"
        yield Finding(count, bound, message)
        return
    derived = task.recordable_episodes(scenario_set, metadata["seeds"], count, filtered)
    told = set(derived)
    for index, episode in enumerate(present):
        if episode not in told:
            message = f"seed {episode.seed} of scenario {episode.scenario} does not follow from the listed seeds"
            yield Finding(episode.seed, f"one of {len(derived)} episodes of {scenario_set!r}", message, index)
    for seed in sorted(left_out - ({episode.seed for episode in derived} - set(seeds))):
        message = f"seed {seed} is said to be left out, but is there or was never asked for"
        yield Finding(seed, "an episode that is missing", message)
    most = Counter(e.scenario for e in task.episodes(scenario_set, metadata["seeds"], count, Purpose.RECORD))
    actual = Counter(scenarios)
    for scenario in sorted(name for name in actual if filtered and actual[name] > most[name]):
        message = f"there are more episodes of scenario {shortened(scenario)} than were asked for"
        yield Finding(actual[scenario], f"<= {most[scenario]}", message)


@rule("Recording did not begin in the future.", "metadata_complete")
def recorded_before_now(dataset: Dataset, context: Context) -> Findings:
    now, said = datetime.now(UTC), dataset.metadata["created_at"]
    if datetime.fromisoformat(said) > now + CLOCKS_APART:
        yield Finding(said, f"<= {now:%Y-%m-%dT%H:%M:%SZ}", "recording is said to have begun in the future")


@rule("The expert was approved, with these bytes, when recording began.", *ORIGIN)
def expert_approved(dataset: Dataset, context: Context) -> Findings:
    expert, recorded = dataset.metadata["demonstrator"], dataset.metadata["created_at"]
    if expert["kind"] != "expert":
        raise NotAsked(f"the demonstrator is {expert['kind']}, not a registered expert")
    if context.approvals is None:
        raise NotAsked("the registry's record of approvals was not given")

    def covers(approval: Approval) -> bool:
        end = datetime.max.replace(tzinfo=UTC) if approval.until is None else datetime.fromisoformat(approval.until)
        return datetime.fromisoformat(approval.since) <= datetime.fromisoformat(recorded) <= end

    version = f"version {expert['version']}"
    periods = [a for a in context.approvals if a.version == expert["version"]]
    of_these_bytes = [a for a in periods if a.digest == expert["digest"]]
    if not periods:
        known = ", ".join(sorted({a.version for a in context.approvals})) or "none"
        yield Finding(expert["version"], f"approved versions: {known}", f"{version} was never approved")
    elif not of_these_bytes:
        yield Finding(expert["digest"], f"= {periods[-1].digest}", f"{version} was approved with other bytes")
    elif not any(covers(a) for a in of_these_bytes):
        spans = "; ".join(f"{a.since} to {a.until or 'now'}" for a in periods)
        yield Finding(recorded, f"within {spans}", f"{version} was not the approved expert at that time")


@rule("What an earlier validation found wrong is asked again, of no fewer episodes.", "lengths_aligned")
def no_weaker(dataset: Dataset, context: Context) -> Findings:
    if not context.refusals:
        raise NotAsked("the dataset is not quarantined")
    replayed = 0 if context.replay is None else context.replay_episodes
    for earlier in context.refusals:
        by = f"run {earlier.run_id} found the dataset wrong"
        wanted = min(earlier.replay_episodes, len(dataset.lengths))
        if replayed < wanted:
            message = f"{by} and simulated more episodes: a weaker validation does not lift that"
            yield Finding(replayed, f"replay_episodes >= {wanted}", message)
        if "minimum_episodes" in earlier.failed_rules and context.min_episodes < earlier.min_episodes:
            message = f"{by} and asked for more episodes: a weaker validation does not lift that"
            yield Finding(context.min_episodes, f"min_episodes >= {earlier.min_episodes}", message)
        if "labels" in earlier.failed_rules and context.act is None:
            message = f"{by} by asking its demonstrator, who cannot be asked any more"
            yield Finding(None, "the demonstrator, to ask it again", message)


# --- time: does row t hold what the demonstrator saw when it chose action t (see `alignment`) ------------------------


def _replayable(dataset: Dataset, context: Context) -> np.ndarray:
    """Numbers of the episodes that can be simulated again. Raises NotAsked when there are none."""
    if context.replay is None:
        raise NotAsked("no environment was given; see time_alignment")
    if context.replay_episodes == 0:
        raise NotAsked("no episode was to be simulated again; see time_alignment")
    known = np.flatnonzero(dataset.arrays["seeds"] != UNKNOWN_SEED)
    if not len(known):
        raise NotAsked("no episode has a known seed")
    return known


@rule(
    "The environment, given seed and executed actions, returns the recorded observations, rewards, ends and figures.",
    *TIMED, "actions_in_space", "seeds_unique", about=(SEEDS, FINAL_OBSERVATIONS, REWARDS, ENDS),
)  # fmt: skip
def replay(dataset: Dataset, context: Context) -> Findings:
    known = _replayable(dataset, context)
    assert context.replay is not None
    # drawn by the content, the same ones every time
    rng = np.random.default_rng(int(dataset.digest[:16], 16))
    chosen = sorted(rng.choice(known, size=min(len(known), context.replay_episodes), replace=False).tolist())
    identical = 0
    for index in chosen:
        episode = dataset.trajectories.episode(index)
        try:
            again = context.replay(episode)
        except BadInput as error:
            yield Finding(episode.scenario, "an episode that can be simulated", str(error), index)
            continue
        difference = first_difference(episode, again)
        if difference is None:
            identical += 1
            continue
        bound = f"= {difference.replayed} (the same bits)"
        message = f"re-simulation departs from the recording: {difference}"
        yield Finding(difference.recorded, bound, message, index, difference.step)
    dataset.notes.append(f"re-simulation: {identical} of {len(chosen)} episodes bit-identical")


@rule(
    "Without re-simulation: no trace of observations stored a step early or late.",
    *TIMED, "episodes_distinct", about=(FINAL_OBSERVATIONS, ENDS),
)  # fmt: skip
def time_alignment(dataset: Dataset, context: Context) -> Findings:
    numbers = np.arange(len(dataset.lengths))
    with suppress(NotAsked):  # a few seeds that are known say nothing of the other episodes
        numbers = np.setdiff1d(numbers, _replayable(dataset, context))
    if not len(numbers):
        raise NotAsked("re-simulation decides it; see replay")
    if len(numbers) < len(dataset.lengths):
        dataset = Dataset(dataset.trajectories.select(numbers).to_arrays(), dataset.metadata, dataset.notes)
    return traces_of_a_shift(dataset, numbers)


@rule(
    "The labels are what the demonstrator answers to the stored observations.",
    "fits_spaces", "observations_finite", "actions_finite",
)  # fmt: skip
def labels(dataset: Dataset, context: Context) -> Findings:
    if context.act is None:
        raise NotAsked("the demonstrator was not given")
    data, rows = dataset.trajectories, dataset.trajectories.step_rows
    low, high = space_bounds(dataset.action_space)
    continuous = data.actions.dtype.kind == "f"
    half_range = np.where(np.isfinite(high - low), (high.astype(np.float64) - low) / 2, 1.0)
    tolerance = LABEL_TOLERANCE * half_range if continuous else 0.0
    wrong: list[tuple[int, np.ndarray]] = []  # step of the dataset, answer
    for part in chunks(data.steps, ACT_ROWS):
        answers = flat_rows(np.asarray(context.act(from_rows(data.observations[rows[part]]))))
        difference = np.abs(answers.astype(np.float64) - flat_rows(data.actions[part]))
        wrong += [(part.start + row, answers[row]) for row in np.flatnonzero((difference > tolerance).any(axis=1))]
    if not continuous and len(wrong) <= LABEL_SHARE * data.steps:
        return  # two actions as good as equal: the last bit of another processor decides
    for row, answer in wrong:
        label = flat_rows(data.actions[row][None])[0].tolist()[:8]
        bound = f"= {answer.tolist()[:8]} +- {LABEL_TOLERANCE:g} half ranges"
        message = "the demonstrator answers otherwise to the stored observation"
        yield Finding(str(label), bound, message, *dataset.place("actions", row))
